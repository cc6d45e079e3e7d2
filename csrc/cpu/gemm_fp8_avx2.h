// How e4m3 weights are decoded with AVX2 (cpu/gemm_fp8_vectors.h): panels of 16 columns, three rows at a time. A panel
// is decoded to f16 (4 KiB). For few rows f16 becomes f32 as it is loaded: vcvtph2ps from memory runs beside the
// multiply-adds (on Zen 3 two a cycle; from a register only one). For many rows the panel is widened to f32 first.
#pragma once

#include "cpu/gemm_fp8_vectors.h"

namespace glm5::avx2 {

struct Decoder {
  using Value = u16;  // f16, in the order of cpu::Panel
  using Bytes = __m256i;
  static constexpr i64 kColumns = 16, kBytes = 32;
  // From so many rows on the panel is widened: 5 % faster for 256 rows on Zen 3, 10 % slower for 16.
  static constexpr i64 kWideRows = 48;

  GLM5_INLINE static Bytes load(const u8* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  GLM5_INLINE static Bytes larger_doubled(Bytes largest, Bytes x) {
    return _mm256_max_epu8(largest, _mm256_add_epi8(x, x));
  }
  GLM5_INLINE static bool has_nan(Bytes largest) {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(static_cast<i8>(0xfe)))) != 0;
  }

  // 16 columns x 32 k.
  template <bool WithNan>
  GLM5_INLINE static void decode(Bytes (&x)[16], u16* panel) {
    transpose_16x16_bytes(x);
    const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      __m256i left = f16_of_e4m3(_mm256_unpacklo_epi8(zero, x[j]));
      __m256i right = f16_of_e4m3(_mm256_unpackhi_epi8(zero, x[j]));
      if constexpr (WithNan) {
        left = f16_nan(left);
        right = f16_nan(right);
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(panel + j * 32), left);
      _mm256_store_si256(reinterpret_cast<__m256i*>(panel + j * 32 + 16), right);
    }
  }

  // The panel in f32, [k][16], behind the one in f16.
  GLM5_INLINE static const f32* widen(u16* panel) {
    f32* wide = reinterpret_cast<f32*>(panel + cpu::kGemmBlock * kColumns);
    for (i64 step = 0; step < cpu::kGemmBlock; step += cpu::kGemmStep) {
#pragma GCC unroll 4
      for (i64 j = 0; j < 16; ++j) {
        const u16* from = panel + step * kColumns + j * 32;
        f32* row = wide + (step + j) * kColumns;
        Lanes::store(row, Lanes::load(from));
        Lanes::store(row + 8, Lanes::load(from + 16));
        Lanes::store(row + 16 * kColumns, Lanes::load(from + 8));
        Lanes::store(row + 16 * kColumns + 8, Lanes::load(from + 24));
      }
    }
    return wide;
  }
};

}  // namespace glm5::avx2
