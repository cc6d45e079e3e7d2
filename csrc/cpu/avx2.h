// The AVX2 toolbox (with FMA and F16C): loads, roundings, transpositions and the decoding of e4m3. Everything is
// inlined into the kernel that uses it.
#pragma once

#include <immintrin.h>

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5::avx2 {

// ---- Eight values, in memory as f32 or bf16 ----

GLM5_INLINE __m256 load_f32x8(const f32* values) { return _mm256_loadu_ps(values); }
GLM5_INLINE __m256 load_f32x8(const bf16* values) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

GLM5_INLINE __m256 load_f32x8(const e4m3* values);  // below

GLM5_INLINE void store_f32x8(f32* values, __m256 x) { _mm256_storeu_ps(values, x); }
// Rounds to nearest even; NaN stays NaN. The same bits as to_bf16(), above 16 zeros.
GLM5_INLINE __m256i bf16_in_high_half(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_and_si256(_mm256_blendv_epi8(rounded, quiet, is_nan), _mm256_set1_epi32(static_cast<i32>(0xffff0000)));
}
GLM5_INLINE void store_f32x8(bf16* values, __m256 x) {
  const __m256i high = _mm256_srli_epi32(bf16_in_high_half(x), 16);
  const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(values), packed);
}

GLM5_INLINE void store_scalar(f32* value, f32 x) { *value = x; }
GLM5_INLINE void store_scalar(bf16* value, f32 x) { *value = to_bf16(x); }

// ---- Transposition ----

GLM5_INLINE void transpose_8x8(__m256 (&x)[8]) {
  __m256 y[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    y[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    x[4 * i + 0] = _mm256_shuffle_ps(y[4 * i], y[4 * i + 2], 0x44);
    x[4 * i + 1] = _mm256_shuffle_ps(y[4 * i], y[4 * i + 2], 0xee);
    x[4 * i + 2] = _mm256_shuffle_ps(y[4 * i + 1], y[4 * i + 3], 0x44);
    x[4 * i + 3] = _mm256_shuffle_ps(y[4 * i + 1], y[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// In each half: 16 rows of 16 bytes become 16 columns. One interleaving of row j with row j + 8 turns the eight bits
// (row, byte) of a byte's place by one; four of them exchange row and byte.
GLM5_INLINE void transpose_16x16_bytes(__m256i (&x)[16]) {
#pragma GCC unroll 4
  for (int level = 0; level < 4; ++level) {
    __m256i y[16];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      y[2 * j] = _mm256_unpacklo_epi8(x[j], x[j + 8]);
      y[2 * j + 1] = _mm256_unpackhi_epi8(x[j], x[j + 8]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) x[j] = y[j];
  }
}

// ---- e4m3 ----

// A byte b in the upper half of each 16 bits becomes the f16 of value(b) / 256: the sign stays, the other bits move
// down by one. f16 subnormals hold e4m3's, and vcvtph2ps reads them whatever MXCSR says. NaN needs f16_nan().
GLM5_INLINE __m256i f16_of_e4m3(__m256i bytes_in_high_half) {
  return _mm256_and_si256(_mm256_srai_epi16(bytes_in_high_half, 1), _mm256_set1_epi16(static_cast<i16>(0xbf80)));
}

// What 0x7f and 0xff became (1.875) turns into NaN.
GLM5_INLINE __m256i f16_nan(__m256i halves) {
  const __m256i magnitude = _mm256_and_si256(halves, _mm256_set1_epi16(0x7fff));
  const __m256i is_nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
  return _mm256_or_si256(halves, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7c00)));
}

// 16 e4m3 as f32, divided by 256.
struct TwoF32x8 {
  __m256 low, high;
};
GLM5_INLINE TwoF32x8 f32_of_f16(__m256i halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
GLM5_INLINE TwoF32x8 decode_e4m3x16(__m128i bytes) {
  return f32_of_f16(f16_nan(f16_of_e4m3(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8))));
}

GLM5_INLINE __m256 load_f32x8(const e4m3* values) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  const __m256i halves = f16_nan(f16_of_e4m3(_mm256_castsi128_si256(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes))));
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_set1_ps(256.0f));
}

// ---- A vector, as the loops of cpu/gemm_vectors.h take it ----

// Lane i plus lane i + 4, then i + 2, then i + 1.
GLM5_INLINE f32 sum_of_8(__m256 x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

struct Lanes {
  static constexpr i64 kCount = 8;
  static constexpr int kStepRows = 3, kChainRows = 6;  // rows whose sums fill 12 registers
  using F32 = __m256;

  GLM5_INLINE static F32 zero() { return _mm256_setzero_ps(); }
  GLM5_INLINE static F32 broadcast(const f32& x) { return _mm256_broadcast_ss(&x); }
  GLM5_INLINE static F32 constant(f32 x) { return _mm256_set1_ps(x); }  // broadcast would store it first, each time
  GLM5_INLINE static F32 load(const f32* aligned) { return _mm256_load_ps(aligned); }
  GLM5_INLINE static F32 load(const u16* aligned_f16) {
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(aligned_f16)));
  }
  GLM5_INLINE static void store(f32* aligned, F32 x) { _mm256_store_ps(aligned, x); }
  GLM5_INLINE static F32 fma(F32 x, F32 y, F32 sum) { return _mm256_fmadd_ps(x, y, sum); }
  GLM5_INLINE static F32 where_positive(F32 x, F32 y) {  // x > 0 ? y : 0
    return _mm256_and_ps(_mm256_cmp_ps(x, zero(), _CMP_GT_OQ), y);
  }
  GLM5_INLINE static F32 abs(F32 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  GLM5_INLINE static F32 larger_of(F32 x, F32 y) { return _mm256_max_ps(x, y); }   // x > y ? x : y
  GLM5_INLINE static F32 smaller_of(F32 x, F32 y) { return _mm256_min_ps(x, y); }  // x < y ? x : y
  GLM5_INLINE static F32 low_bits_to_exponent(F32 x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
  }
  GLM5_INLINE static F32 round_to_bf16(F32 x) { return _mm256_castsi256_ps(bf16_in_high_half(x)); }
  // 16 chains, folded 8, 4, 2, 1.
  GLM5_INLINE static f32 sum_of_16(const F32 (&chain)[2]) { return sum_of_8(_mm256_add_ps(chain[0], chain[1])); }
};

}  // namespace glm5::avx2
