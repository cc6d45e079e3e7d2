// The AVX-512 toolbox (F, BW, VL, DQ, VBMI): masks, loads, roundings and transpositions. What is done once, or at
// the edges, is taken from AVX2. Everything is inlined into the kernel that uses it.
#pragma once

// gcc 12's own header passes undefined values as the don't-care operands of builtins and warns about them (PR 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "core/fp8.h"
#include "core/tensor.h"
#include "cpu/avx2.h"

namespace glm5::avx512 {

// Masks of the first `count` lanes; all of them from 16, 32 or 64 on.
GLM5_INLINE __mmask16 first_of_16(i64 count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}
GLM5_INLINE __mmask32 first_of_32(i64 count) {
  return count >= 32 ? ~__mmask32{0} : count <= 0 ? 0 : static_cast<__mmask32>((u32{1} << count) - 1);
}
GLM5_INLINE __mmask64 first_of_64(i64 count) {
  return count >= 64 ? ~__mmask64{0} : count <= 0 ? 0 : static_cast<__mmask64>((u64{1} << count) - 1);
}

// ---- Sixteen values, in memory as f32 or bf16; masked-out lanes load zero and store nothing ----

GLM5_INLINE __m512 load_f32x16(const f32* values, __mmask16 live) { return _mm512_maskz_loadu_ps(live, values); }
GLM5_INLINE __m512 load_f32x16(const bf16* values, __mmask16 live) {
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(live, values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

GLM5_INLINE void store_f32x16(f32* values, __m512 x, __mmask16 live) { _mm512_mask_storeu_ps(values, live, x); }
// Rounds to nearest even; NaN stays NaN. The same bits as to_bf16().
GLM5_INLINE __m512i rounded_to_bf16(__m512 x) {  // in the upper halves
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
}
GLM5_INLINE void store_f32x16(bf16* values, __m512 x, __mmask16 live) {
  const __m512i kept = rounded_to_bf16(x);
  _mm256_mask_storeu_epi16(values, live, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// ---- Transposition ----

// 16 x 16 values of 32 bits.
GLM5_INLINE void transpose_16x16(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    y[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  // x[4q + c], lane L: column 4L + c of rows 4q .. 4q + 3.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    x[4 * q + 0] = _mm512_unpacklo_epi64(y[4 * q], y[4 * q + 2]);
    x[4 * q + 1] = _mm512_unpackhi_epi64(y[4 * q], y[4 * q + 2]);
    x[4 * q + 2] = _mm512_unpacklo_epi64(y[4 * q + 1], y[4 * q + 3]);
    x[4 * q + 3] = _mm512_unpackhi_epi64(y[4 * q + 1], y[4 * q + 3]);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i top_even = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88);
    const __m512i top_odd = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd);
    const __m512i bottom_even = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
    const __m512i bottom_odd = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
    y[c] = _mm512_shuffle_i32x4(top_even, bottom_even, 0x88);
    y[8 + c] = _mm512_shuffle_i32x4(top_even, bottom_even, 0xdd);
    y[4 + c] = _mm512_shuffle_i32x4(top_odd, bottom_odd, 0x88);
    y[12 + c] = _mm512_shuffle_i32x4(top_odd, bottom_odd, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = y[i];
}

// In each quarter: 16 rows of 16 bytes become 16 columns (see avx2::transpose_16x16_bytes).
GLM5_INLINE void transpose_16x16_bytes(__m512i (&x)[16]) {
#pragma GCC unroll 4
  for (int level = 0; level < 4; ++level) {
    __m512i y[16];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      y[2 * j] = _mm512_unpacklo_epi8(x[j], x[j + 8]);
      y[2 * j + 1] = _mm512_unpackhi_epi8(x[j], x[j + 8]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = y[j];
  }
}

// ---- A vector, as the loops of cpu/gemm_vectors.h take it ----

struct Lanes {
  static constexpr i64 kCount = 16;
  static constexpr int kStepRows = 6, kChainRows = 12;  // rows whose sums fill 24 registers
  using F32 = __m512;

  GLM5_INLINE static F32 zero() { return _mm512_setzero_ps(); }
  GLM5_INLINE static F32 broadcast(const f32& x) { return _mm512_set1_ps(x); }
  GLM5_INLINE static F32 constant(f32 x) { return _mm512_set1_ps(x); }
  GLM5_INLINE static F32 load(const f32* aligned) { return _mm512_load_ps(aligned); }
  GLM5_INLINE static void store(f32* aligned, F32 x) { _mm512_store_ps(aligned, x); }
  GLM5_INLINE static F32 fma(F32 x, F32 y, F32 sum) { return _mm512_fmadd_ps(x, y, sum); }
  GLM5_INLINE static F32 where_positive(F32 x, F32 y) {  // x > 0 ? y : 0
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ), y);
  }
  GLM5_INLINE static F32 abs(F32 x) { return _mm512_abs_ps(x); }
  GLM5_INLINE static F32 larger_of(F32 x, F32 y) { return _mm512_max_ps(x, y); }   // x > y ? x : y
  GLM5_INLINE static F32 smaller_of(F32 x, F32 y) { return _mm512_min_ps(x, y); }  // x < y ? x : y
  GLM5_INLINE static F32 low_bits_to_exponent(F32 x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
  }
  // 16 chains, folded 8, 4, 2, 1.
  GLM5_INLINE static f32 sum_of_16(const F32 (&chain)[1]) {
    return avx2::sum_of_8(_mm256_add_ps(_mm512_castps512_ps256(chain[0]), _mm512_extractf32x8_ps(chain[0], 1)));
  }
  GLM5_INLINE static F32 round_to_bf16(F32 x) {
    return _mm512_castsi512_ps(_mm512_and_si512(rounded_to_bf16(x), _mm512_set1_epi32(static_cast<i32>(0xffff0000))));
  }
};

}  // namespace glm5::avx512
