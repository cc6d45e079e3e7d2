// The AVX2 lanes of cpu/topk.h, which says what each does.
#pragma once

#include <immintrin.h>

#include "cpu/topk.h"

namespace glm5::avx2 {

// For each mask of eight lanes the places of its set bits, and then anything: a byte each.
struct TopkPlaces {
  u64 of[256];
};
consteval TopkPlaces topk_places() {
  TopkPlaces places{};
  for (u32 mask = 0; mask < 256; ++mask) {
    u64 packed = 0;
    int found = 0;
    for (u64 lane = 0; lane < 8; ++lane)
      if (mask >> lane & 1) packed |= lane << (8 * found++);
    places.of[mask] = packed;
  }
  return places;
}

constexpr TopkPlaces kTopkPlaces = topk_places();

struct TopkLanes {
  static constexpr i64 kWidth = 8;

  GLM5_INLINE static __m256i above8(const f32* scores, __m256 threshold) {
    return _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(scores), threshold, _CMP_GT_OQ));
  }

  // 32 results packed to bytes and brought back into order.
  GLM5_INLINE static u64 above32(const f32* scores, __m256 threshold) {
    const __m256i low = _mm256_packs_epi32(above8(scores, threshold), above8(scores + 8, threshold));
    const __m256i high = _mm256_packs_epi32(above8(scores + 16, threshold), above8(scores + 24, threshold));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
    return static_cast<u32>(_mm256_movemask_epi8(bytes));
  }

  GLM5_INLINE static u64 above(const f32* scores, f32 threshold) {
    const __m256 limit = _mm256_set1_ps(threshold);
    return above32(scores, limit) | above32(scores + 32, limit) << 32;
  }

  GLM5_INLINE static void convert(i32* orders, i64 count) {
    const __m256i nan = _mm256_set1_epi32(kOrderOfNan), infinity = _mm256_set1_epi32(0x7f800000);
    for (i64 i = 0; i < count; i += 8) {
      __m256i* place = reinterpret_cast<__m256i*>(orders + i);
      const __m256i bits = _mm256_loadu_si256(place);
      const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
      // Zero loses its sign, then the magnitude of what is negative is inverted.
      const __m256i is_zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
      const __m256i sign = _mm256_andnot_si256(is_zero, _mm256_srai_epi32(bits, 31));
      const __m256i order = _mm256_xor_si256(sign, magnitude);
      _mm256_storeu_si256(place, _mm256_blendv_epi8(order, nan, _mm256_cmpgt_epi32(magnitude, infinity)));
    }
  }

  GLM5_INLINE static i64 sum(__m256i counts) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(counts), _mm256_extracti128_si256(counts, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
  }

  GLM5_INLINE static i64 count_at_least(const i32* orders, i64 count, i32 bound) {
    const __m256i limit = _mm256_set1_epi32(bound);
    __m256i below[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
    i64 i = 0;
    for (; i + 32 <= count; i += 32) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(orders + i + 8 * v));
        below[v] = _mm256_add_epi32(below[v], _mm256_cmpgt_epi32(limit, order));  // -1 where it is below
      }
    }
    for (; i < count; i += 8) {
      const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(orders + i));
      below[0] = _mm256_add_epi32(below[0], _mm256_cmpgt_epi32(limit, order));
    }
    return count + sum(_mm256_add_epi32(_mm256_add_epi32(below[0], below[1]), _mm256_add_epi32(below[2], below[3])));
  }

  GLM5_INLINE static void extremes(const i32* orders, i64 count, i32& least, i32& most) {
    __m256i lows = _mm256_set1_epi32(least), highs = _mm256_set1_epi32(most);
    for (i64 i = 0; i < count; i += 8) {
      const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(orders + i));
      lows = _mm256_min_epi32(lows, order);
      highs = _mm256_max_epi32(highs, order);
    }
    alignas(32) i32 low[8], high[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(low), lows);
    _mm256_store_si256(reinterpret_cast<__m256i*>(high), highs);
    for (int i = 0; i < 8; ++i) {
      least = low[i] < least ? low[i] : least;
      most = high[i] > most ? high[i] : most;
    }
  }

  GLM5_INLINE static i64 keep_at_least(i32* orders, i32* indices, i64 begin, i64 end, i32 bound, i64 to) {
    const __m256i limit = _mm256_set1_epi32(bound);
    for (i64 i = begin; i < end; i += 8) {
      const __m256i order = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(orders + i));
      const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(indices + i));
      const u32 below = static_cast<u32>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, order))));
      const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kTopkPlaces.of[below ^ 0xff]));
      const __m256i places = _mm256_cvtepu8_epi32(packed);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(orders + to), _mm256_permutevar8x32_epi32(order, places));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + to), _mm256_permutevar8x32_epi32(index, places));
      to += 8 - __builtin_popcount(below);
    }
    return to;
  }

  GLM5_INLINE static void copy(const f32* scores, i32 first, i32* orders, i32* indices) {
    __m256i index = _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
#pragma GCC unroll 8
    for (i64 i = 0; i < cpu::kTopkWord; i += 8) {
      _mm256_storeu_ps(reinterpret_cast<f32*>(orders + i), _mm256_loadu_ps(scores + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(indices + i), index);
      index = _mm256_add_epi32(index, _mm256_set1_epi32(8));
    }
  }
};

}  // namespace glm5::avx2
