// How sparse_mla_attention and its gradient bring what they multiply into AMX's tiles, and results out of them.
//
// Tiles lie as [16 rows or columns of a product][step of 32][16][32] bf16, f32 results as [16][16].
#pragma once

#include "cpu/amx.h"
#include "ops/sparse_mla_attention/items.h"

namespace glm5::amx {

GLM5_INLINE __m512i load_32(const bf16* from, i64 valid) {
  return _mm512_maskz_loadu_epi16(avx512::first_of_32(valid), from);
}

// Heads [first_head, first_head + heads) of a token as pairs of dims, `tiles` tiles; zero for heads that do not exist.
[[maybe_unused]] static void pack_heads(const Tensor<const bf16, 3>& from, i64 token, i64 first_head, i64 heads,
                                        i64 tiles, bf16* to) {
  const i64 dim = from.shape[2];
  for (i64 tile = 0; tile < tiles; ++tile) {
    for (i64 k = 0; k < dim; k += cpu::kGemmStep, to += kTileBf16) {
      __m512i x[16];
#pragma GCC unroll 16
      for (i64 i = 0; i < kTile; ++i) {
        const i64 h = tile * kTile + i;
        x[i] = h < heads ? load_32(from.at(token, first_head + h, k), dim - k) : _mm512_setzero_si512();
      }
      avx512::transpose_16x16(x);
#pragma GCC unroll 16
      for (i64 i = 0; i < kTile; ++i) _mm512_store_si512(to + i * 32, x[i]);
    }
  }
}

// `tiles` tiles of keys as rows, dims [first_dim, dim); zero for keys that do not exist.
[[maybe_unused]] static void pack_keys(const bf16* const* rows, i64 keys, i64 tiles, i64 first_dim, i64 dim, bf16* to) {
  const i64 steps = ceil_div(dim - first_dim, cpu::kGemmStep);
  for (i64 i = 0; i < tiles * kTile; ++i) {
    bf16* row = to + i / kTile * steps * kTileBf16 + i % kTile * 32;
    for (i64 s = 0; s < steps; ++s) {
      const i64 k = first_dim + s * cpu::kGemmStep;
      _mm512_store_si512(row + s * kTileBf16, i < keys ? load_32(rows[i] + k, dim - k) : _mm512_setzero_si512());
    }
  }
}

// `columns` columns (those up to a multiple of 32 are zero) of rows, as pairs of rows: `count` of them, then zeros.
template <class RowOf>
static void pack_columns(const RowOf& row_of, i64 count, i64 columns, bf16* to) {
  const __m512i left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  const i64 distance = ceil_div(count, cpu::kGemmStep) * kTileBf16;
  for (i64 i = 0; i < round_up(count, cpu::kGemmStep); i += 2) {
    bf16* pair = to + i / cpu::kGemmStep * kTileBf16 + i % cpu::kGemmStep / 2 * 32;
    for (i64 c = 0; c < columns; c += 32) {
      const __m512i even = i < count ? load_32(row_of(i) + c, columns - c) : _mm512_setzero_si512();
      const __m512i odd = i + 1 < count ? load_32(row_of(i + 1) + c, columns - c) : _mm512_setzero_si512();
      // Unpacking takes four columns of each quarter, then the other four.
      const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
      _mm512_store_si512(pair + c / kTile * distance, _mm512_permutex2var_epi64(low, left, high));
      _mm512_store_si512(pair + (c / kTile + 1) * distance, _mm512_permutex2var_epi64(low, right, high));
    }
  }
}

// 32 values that stand, as bf16, in the upper halves of f32.
GLM5_INLINE __m512i upper_halves(const f32* x) {
  const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_load_si512(x), 16));
  const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_load_si512(x + kTile), 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Values of each head and key, bf16 in the upper halves of f32 [128 keys][head][128], as rows of heads; zero for heads
// that do not exist.
[[maybe_unused]] static void pack_scores(const f32* scores, i64 heads, i64 count, i64 tiles, bf16* to) {
  const i64 steps = ceil_div(count, cpu::kGemmStep);
  for (i64 h = 0; h < tiles * kTile; ++h) {
    bf16* row = to + h / kTile * steps * kTileBf16 + h % kTile * 32;
    for (i64 s = 0; s < steps; ++s) {
      const i64 i = s * cpu::kGemmStep;
      const f32* p = scores + (i / cpu::kGemmBlock * heads + h) * cpu::kGemmBlock + i % cpu::kGemmBlock;
      _mm512_store_si512(row + s * kTileBf16, h < heads ? upper_halves(p) : _mm512_setzero_si512());
    }
  }
}

// A result tile of 16 keys x 16 heads goes to the scores; rows of heads that do not exist are left out.
GLM5_INLINE void turn_result(const f32* result, i64 heads, f32* scores) {
  __m512i x[16];
#pragma GCC unroll 16
  for (i64 i = 0; i < kTile; ++i) x[i] = _mm512_load_si512(result + i * kTile);
  avx512::transpose_16x16(x);
#pragma GCC unroll 16
  for (i64 i = 0; i < kTile; ++i) {
    if (i < heads) _mm512_store_si512(scores + i * cpu::kGemmBlock, x[i]);
  }
}

}  // namespace glm5::amx
