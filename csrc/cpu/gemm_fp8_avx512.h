// How e4m3 weights are decoded with AVX-512 (cpu/gemm_fp8_vectors.h): panels of 32 columns, decoded to f32 (16 KiB);
// six rows at a time.
#pragma once

#include "cpu/avx512.h"
#include "cpu/gemm_fp8_vectors.h"

namespace glm5::avx512 {

namespace {  // its lambdas would be weak symbols

struct Decoder {
  using Value = f32;
  using Bytes = __m512i;
  static constexpr i64 kColumns = 32, kBytes = 64;
  static constexpr i64 kWideRows = 0;

  GLM5_INLINE static Bytes load(const u8* from) { return _mm512_loadu_si512(from); }
  GLM5_INLINE static Bytes larger_doubled(Bytes largest, Bytes x) {
    return _mm512_max_epu8(largest, _mm512_add_epi8(x, x));
  }
  GLM5_INLINE static bool has_nan(Bytes largest) {
    return _mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(static_cast<i8>(0xfe))) != 0;
  }

  // 16 columns x 64 k to panel[k][16 of 32], divided by 256 as avx2::f16_of_e4m3 does it.
  template <bool WithNan>
  GLM5_INLINE static void decode(Bytes (&x)[16], f32* panel) {
    transpose_16x16_bytes(x);
    const auto store = [&](__m128i bytes, i64 k) [[gnu::always_inline]] {
      // The sign fills the upper byte, then all bits move to where f16 has them but one copy of the sign.
      const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
      __m256i halves = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<i16>(0xbf80)));
      if constexpr (WithNan) halves = avx2::f16_nan(halves);
      _mm512_store_ps(panel + k * kColumns, _mm512_cvtph_ps(halves));
    };
#pragma GCC unroll 16
    for (int k = 0; k < 16; ++k) {
      store(_mm512_castsi512_si128(x[k]), k);
      store(_mm512_extracti32x4_epi32(x[k], 1), 16 + k);
      store(_mm512_extracti32x4_epi32(x[k], 2), 32 + k);
      store(_mm512_extracti32x4_epi32(x[k], 3), 48 + k);
    }
  }

  GLM5_INLINE static const f32* widen(const f32* panel) { return panel; }
};

}  // namespace

}  // namespace glm5::avx512
