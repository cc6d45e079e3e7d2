// Scores with AMX. Queries lie as tiles of rows, [token][16 heads][step of 32 dim][16][32] bf16; a panel is 64 keys as
// tiles of pairs, [16 keys][step][16 pairs][16][2] (16 KiB at dim 128, in the L1 cache). A result tile holds 16 heads x
// 16 keys of one token, so that the heads' sum is a sum of vectors of keys: AVX-512 adds the results of two tiles of
// queries to the sums, [token][4][64], while the tile unit works on the next.
#pragma once

#include "cpu/amx.h"
#include "cpu/indexer.h"

namespace glm5::amx {

constexpr i64 kIndexerKeyTiles = cpu::kIndexerPanelKeys / kTile;

// 64 of dim of one row as bf16, zero from `valid` on.
GLM5_INLINE void load_64(const E4m3Decoder& decoder, const e4m3* from, i64 valid, __m512i& first, __m512i& second) {
  decoder.decode(_mm512_maskz_loadu_epi8(avx512::first_of_64(valid), from), first, second);
}
GLM5_INLINE void load_64(const E4m3Decoder&, const bf16* from, i64 valid, __m512i& first, __m512i& second) {
  first = _mm512_maskz_loadu_epi16(avx512::first_of_32(valid), from);
  second = valid > 32 ? _mm512_maskz_loadu_epi16(avx512::first_of_32(valid - 32), from + 32) : _mm512_setzero_si512();
}

// 16 rows of dim values, `stride` apart, as tiles; rows from `rows` on are zero.
template <bool AsPairs, class T>
static void pack_tiles(const T* from, i64 stride, i64 rows, i64 dim, bf16* to) {
  const E4m3Decoder decoder;
  for (i64 k = 0; k < dim; k += 64, to += 2 * kTileBf16) {
    __m512i first[16], second[16];
#pragma GCC unroll 1
    for (i64 i = 0; i < kTile; ++i)
      load_64(decoder, from + (i < rows ? i * stride : 0) + k, i < rows ? dim - k : 0, first[i], second[i]);
    if constexpr (AsPairs) {
      avx512::transpose_16x16(first);
      avx512::transpose_16x16(second);
    }
#pragma GCC unroll 16
    for (i64 i = 0; i < kTile; ++i) {
      _mm512_store_si512(to + i * 32, first[i]);
      _mm512_store_si512(to + kTileBf16 + i * 32, second[i]);
    }
  }
}

// What one item works on.
struct IndexerTiles {
  const cpu::IndexerScratch& scratch;
  i64 heads, head_tiles, steps, stride;  // stride: bf16 from one tile of rows, or of pairs, to the next

  GLM5_INLINE IndexerTiles(const IndexerOperands& operands, const cpu::IndexerScratch& scratch)
      : scratch(scratch),
        heads(operands.q.shape[1]),
        head_tiles(ceil_div(heads, kTile)),
        steps(ceil_div(operands.q.shape[2], cpu::kGemmStep)),
        stride(round_up(steps, 2) * kTileBf16) {}
  GLM5_INLINE bf16* queries(i64 tile) const { return reinterpret_cast<bf16*>(scratch.queries) + tile * stride; }
  GLM5_INLINE bf16* keys(i64 tile) const { return reinterpret_cast<bf16*>(scratch.panel) + tile * stride; }
};

template <class T>
static void pack_queries(const IndexerOperands& operands, const cpu::IndexerItem& item, const IndexerTiles& tiles) {
  const Tensor<const T, 3> q = operands.q.as<T>();
  for (i64 t = 0; t < item.tokens; ++t) {
    for (i64 tile = 0; tile < tiles.head_tiles; ++tile)
      pack_tiles<false>(q.at(item.first_token + t, tile * kTile, 0), q.stride[1],
                        smaller(kTile, tiles.heads - tile * kTile), q.shape[2],
                        tiles.queries(t * tiles.head_tiles + tile));
    for (i64 h = 0; h < tiles.heads; ++h)
      tiles.scratch.weights[t * tiles.head_tiles * kTile + h] = *operands.weights.at(item.first_token + t, h);
  }
}

// The keys from `first` on, and half their scales.
template <class T>
static void load_panel(const IndexerOperands& operands, i64 token, i64 first, const IndexerTiles& tiles) {
  const i64 valid = smaller(cpu::kIndexerPanelKeys, operands.keys() - first);
  const cpu::KeyRows keys = cpu::indexer_keys(operands, token, first);
  for (i64 tile = 0; tile < kIndexerKeyTiles; ++tile) {
    const i64 rows = smaller(kTile, larger(0, valid - tile * kTile));
    pack_tiles<true>(static_cast<const T*>(keys.values) + (rows > 0 ? tile * kTile * keys.stride : 0), keys.stride,
                     rows, operands.q.shape[2], tiles.keys(tile));
  }
  for (i64 j = 0; j < cpu::kIndexerPanelKeys; ++j)
    tiles.scratch.scales[j] = keys.scales == nullptr ? 0.5f
                              : j < valid            ? 0.5f * keys.scales[j * keys.scale_stride]
                                                     : 0.0f;
}

// Result tiles of `row_tiles` tiles of queries from `row_tile` on and two tiles of keys from `key_tile` on.
struct WaitingScores {
  const f32* products;
  i64 row_tile, row_tiles, key_tile;
};

// c_j <- fma(weight, d + |d|, c_j) for 16 keys and 16 heads of one token, or the first `heads` of them.
template <bool AllHeads>
GLM5_INLINE void add_heads(const f32* products, const f32* weights, i64 heads, f32* sums) {
  __m512 c[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) c[j] = _mm512_load_ps(sums + j * cpu::kIndexerPanelKeys);
#pragma GCC unroll 16
  for (int h = 0; h < 16; ++h) {
    if (!AllHeads && h >= heads) break;
    const __m512 d = _mm512_load_ps(products + h * kTile);
    c[h / 2 % 4] = _mm512_fmadd_ps(_mm512_set1_ps(weights[h]), _mm512_add_ps(d, _mm512_abs_ps(d)), c[h / 2 % 4]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) _mm512_store_ps(sums + j * cpu::kIndexerPanelKeys, c[j]);
}

GLM5_INLINE void add_waiting(const IndexerTiles& tiles, const WaitingScores& waiting) {
#pragma GCC unroll 1
  for (i64 i = 0; i < 2 * waiting.row_tiles; ++i) {
    const i64 row_tile = waiting.row_tile + i / 2, token = row_tile / tiles.head_tiles;
    const i64 heads = tiles.heads - row_tile % tiles.head_tiles * kTile;
    f32* sums = tiles.scratch.sums + token * 4 * cpu::kIndexerPanelKeys + (waiting.key_tile + i % 2) * kTile;
    const f32* products = waiting.products + i * kTileF32;
    const f32* weights = tiles.scratch.weights + row_tile * kTile;
    if (heads >= kTile) {
      add_heads<true>(products, weights, heads, sums);
    } else {
      add_heads<false>(products, weights, heads, sums);
    }
  }
}

// Tiles of queries [first, last) against `key_tiles` tiles of keys, an even number, into the sums.
static void add_products(const IndexerTiles& tiles, i64 first, i64 last, i64 key_tiles) {
  WaitingScores waiting{nullptr, 0, 0, 0};
  f32* products = tiles.scratch.stage;
  for (i64 row = first; row < last; row += 2) {
    const bf16* left = tiles.queries(row);
    const bf16* right = row + 1 < last ? tiles.queries(row + 1) : left;  // of a single tile the results are not used
    for (i64 key = 0; key < key_tiles; key += 2) {
      zero_results();
      multiply_2x2(left, right, tiles.keys(key), tiles.keys(key + 1), tiles.steps);
      add_waiting(tiles, waiting);
      store_results(products);
      waiting = {products, row, smaller(2, last - row), key};
      products = products == tiles.scratch.stage ? products + 4 * kTileF32 : tiles.scratch.stage;
    }
  }
  add_waiting(tiles, waiting);
}
static_assert(8 * kTileF32 * 4 <= cpu::kIndexerStageBytes);

// Tokens [begin, end) of the item against the panel at `key`.
static void score_run(const IndexerOperands& operands, const cpu::IndexerItem& item, i64 begin, i64 end, i64 key,
                      const IndexerTiles& tiles, const cpu::ScoreRows& scores) {
  constexpr i64 kPanel = cpu::kIndexerPanelKeys;
  const i64 first = begin - item.first_token, last = end - item.first_token;
  for (i64 i = first * 4 * kPanel; i < last * 4 * kPanel; i += kTile)
    _mm512_store_ps(tiles.scratch.sums + i, _mm512_setzero_ps());
  const i64 keys = cpu::indexer_span_of_all(operands, item, begin, end).end - key;
  const i64 key_tiles = round_up(ceil_div(smaller(kPanel, keys), kTile), 2);
  add_products(tiles, first * tiles.head_tiles, last * tiles.head_tiles, key_tiles);
  for (i64 t = first; t < last; ++t) {
    alignas(64) f32 row[kPanel];
    for (i64 j = 0; j < kPanel; j += kTile) {
      const f32* c = tiles.scratch.sums + t * 4 * kPanel + j;
      const __m512 even = _mm512_add_ps(_mm512_load_ps(c), _mm512_load_ps(c + kPanel));
      const __m512 odd = _mm512_add_ps(_mm512_load_ps(c + 2 * kPanel), _mm512_load_ps(c + 3 * kPanel));
      _mm512_store_ps(row + j, _mm512_mul_ps(_mm512_add_ps(even, odd), _mm512_load_ps(tiles.scratch.scales + j)));
    }
    cpu::indexer_store(operands, item, item.first_token + t, key, kPanel, row, scores);
  }
}

template <class T>
static void score_item(const IndexerOperands& operands, const cpu::IndexerItem& item,
                       const cpu::IndexerScratch& scratch, const cpu::ScoreRows& scores) {
  constexpr i64 kPanel = cpu::kIndexerPanelKeys;
  const i64 end = item.first_token + item.tokens;
  if (cpu::indexer_span_of_all(operands, item, item.first_token, end).is_empty()) return;
  const IndexerTiles tiles(operands, scratch);
  pack_queries<T>(operands, item, tiles);
  configure_tiles();
  for (i64 begin = item.first_token, next; begin < end; begin = next) {
    next = cpu::indexer_same_keys(operands, begin, end);
    const cpu::KeySpan span = cpu::indexer_span_of_all(operands, item, begin, next);
    for (i64 key = span.begin / kPanel * kPanel; key < span.end; key += kPanel) {
      bool is_loaded = false;
      cpu::for_runs_that_see(operands, begin, next, key, kPanel, [&](i64 first, i64 last) {
        if (!is_loaded) load_panel<T>(operands, first, key, tiles);
        is_loaded = true;
        score_run(operands, item, first, last, key, tiles, scores);
      });
    }
  }
  release_tiles();
}

struct Scorer {
  static constexpr bool kWithAmx = true;

  GLM5_INLINE static void score(const IndexerOperands& operands, const cpu::IndexerItem& item,
                                const cpu::IndexerScratch& scratch, const cpu::ScoreRows& scores) {
    if (operands.q.is_e4m3) {
      score_item<e4m3>(operands, item, scratch, scores);
    } else {
      score_item<bf16>(operands, item, scratch, scores);
    }
  }
};

}  // namespace glm5::amx
