// The AVX-512 lanes of cpu/topk.h, which says what each does.
#pragma once

#include "cpu/avx512.h"
#include "cpu/topk.h"

namespace glm5::avx512 {

struct TopkLanes {
  static constexpr i64 kWidth = 16;

  GLM5_INLINE static u64 above(const f32* scores, f32 threshold) {
    const __m512 limit = _mm512_set1_ps(threshold);
    u64 bits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v)
      bits |= u64{_mm512_cmp_ps_mask(_mm512_loadu_ps(scores + 16 * v), limit, _CMP_GT_OQ)} << (16 * v);
    return bits;
  }

  GLM5_INLINE static void convert(i32* orders, i64 count) {
    for (i64 i = 0; i < count; i += 16) {
      const __m512i bits = _mm512_loadu_si512(orders + i);
      const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
      // Zero loses its sign, then the magnitude of what is negative is inverted.
      const __m512i sign = _mm512_maskz_srai_epi32(_mm512_test_epi32_mask(magnitude, magnitude), bits, 31);
      const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
      const __m512i order = _mm512_xor_si512(sign, magnitude);
      _mm512_storeu_si512(orders + i, _mm512_mask_mov_epi32(order, is_nan, _mm512_set1_epi32(kOrderOfNan)));
    }
  }

  GLM5_INLINE static i64 count_at_least(const i32* orders, i64 count, i32 bound) {
    const __m512i limit = _mm512_set1_epi32(bound), one = _mm512_set1_epi32(1);
    __m512i found[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    i64 i = 0;
    for (; i + 32 <= count; i += 32) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __mmask16 mask = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(orders + i + 16 * v), limit);
        found[v] = _mm512_mask_add_epi32(found[v], mask, found[v], one);
      }
    }
    for (; i < count; i += 16) {
      const __mmask16 mask = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(orders + i), limit);
      found[0] = _mm512_mask_add_epi32(found[0], mask, found[0], one);
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(found[0], found[1]));
  }

  GLM5_INLINE static void extremes(const i32* orders, i64 count, i32& least, i32& most) {
    __m512i lows = _mm512_set1_epi32(least), highs = _mm512_set1_epi32(most);
    for (i64 i = 0; i < count; i += 16) {
      const __m512i order = _mm512_loadu_si512(orders + i);
      lows = _mm512_min_epi32(lows, order);
      highs = _mm512_max_epi32(highs, order);
    }
    least = _mm512_reduce_min_epi32(lows);
    most = _mm512_reduce_max_epi32(highs);
  }

  GLM5_INLINE static i64 keep_at_least(i32* orders, i32* indices, i64 begin, i64 end, i32 bound, i64 to) {
    const __m512i limit = _mm512_set1_epi32(bound);
    for (i64 i = begin; i < end; i += 16) {
      const __m512i order = _mm512_loadu_si512(orders + i), index = _mm512_loadu_si512(indices + i);
      const __mmask16 kept = _mm512_cmpge_epi32_mask(order, limit);
      _mm512_storeu_si512(orders + to, _mm512_maskz_compress_epi32(kept, order));
      _mm512_storeu_si512(indices + to, _mm512_maskz_compress_epi32(kept, index));
      to += __builtin_popcount(kept);
    }
    return to;
  }

  GLM5_INLINE static void copy(const f32* scores, i32 first, i32* orders, i32* indices) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i index = _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
#pragma GCC unroll 4
    for (i64 i = 0; i < cpu::kTopkWord; i += 16) {
      _mm512_storeu_ps(orders + i, _mm512_loadu_ps(scores + i));
      _mm512_storeu_si512(indices + i, index);
      index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
    }
  }
};

}  // namespace glm5::avx512
