// The gradient of sparse_mla_attention with AMX, 128 keys of a token at a time.
//
//   d, dp   rows of keys x pairs of dims of q and d_out: a result tile holds 16 keys x 16 heads, turned on its way out
//   d_q     rows of ds of 16 heads x pairs of keys: the result tiles rest in memory from one 128 keys to the next
//   d_kv    rows of ds and W of 16 keys x pairs of heads of q and d_out: the result tile is 16 rows of d_kv
//
// Heads are filled up to a multiple of 32 with zeros, so that all products are of 2 x 2 tiles. A token of 64 heads and
// 2048 keys of 576 takes 44,032 TDPBF16PS, 704,512 cycles; its rows of d_kv, 4.7 MB, go to memory and come back once.
// Calculated, not measured.
//
// Tiles: tmm0..3 results; tmm4, tmm5 rows; tmm6, tmm7 pairs (cpu/amx.h).
#include "ops/sparse_mla_attention/bwd.h"
#include "ops/sparse_mla_attention/tiles_amx.h"

namespace glm5::amx {
namespace {

using sparse_mla::Block;
using sparse_mla::BwdScratch;

struct Operands {
  const bf16 *rows, *pairs;
  i64 row_distance, pair_distance;  // from a tile to the next

  GLM5_INLINE void multiply(i64 row, i64 column, i64 steps) const {
    multiply_2x2(rows + row * row_distance, rows + (row + 1) * row_distance, pairs + column * pair_distance,
                 pairs + (column + 1) * pair_distance, steps);
  }
};

// Sizes of a token's products in tiles and steps.
struct Shape {
  i64 heads, dim, v_dim, head_tiles, head_steps, column_tiles, steps, value_steps;

  GLM5_INLINE explicit Shape(const SparseMlaAttentionBwdArgs& args)
      : heads(args.q.shape[1]),
        dim(args.q.shape[2]),
        v_dim(args.out.shape[2]),
        head_tiles(round_up(ceil_div(heads, kTile), 2)),
        head_steps(ceil_div(heads, cpu::kGemmStep)),
        column_tiles(round_up(ceil_div(dim, kTile), 2)),
        steps(ceil_div(dim, cpu::kGemmStep)),
        value_steps(ceil_div(v_dim, cpu::kGemmStep)) {}
};

// Four results of keys x heads into [head][128 keys].
GLM5_INLINE void turn_results(const Shape& shape, i64 key, i64 head, f32* scores) {
  alignas(64) f32 results[4 * kTileF32];
  store_results(results);
  for (i64 i = 0; i < 4; ++i) {
    const i64 first = (head + i % 2) * kTile;
    turn_result(results + i * kTileF32, shape.heads - first, scores + first * cpu::kGemmBlock + (key + i / 2) * kTile);
  }
}

// d and dp of 128 keys or fewer.
static void multiply_keys(const Shape& shape, const bf16* const* rows, i64 keys, const BwdScratch& scratch) {
  const i64 key_tiles = ceil_div(keys, cpu::kGemmStep) * 2, whole = shape.v_dim / cpu::kGemmStep;
  bf16* key_rows = reinterpret_cast<bf16*>(scratch.panel);
  bf16* tail = scratch.pairs + cpu::kGemmBlock * shape.steps * cpu::kGemmStep;  // the last step of the values
  pack_keys(rows, keys, key_tiles, 0, shape.dim, key_rows);
  if (whole < shape.value_steps) pack_keys(rows, keys, key_tiles, whole * cpu::kGemmStep, shape.v_dim, tail);
  const i64 distance = shape.steps * kTileBf16, value_distance = shape.value_steps * kTileBf16;
  const bf16* d_outs = reinterpret_cast<const bf16*>(scratch.d_outs);
  const Operands scores{key_rows, reinterpret_cast<const bf16*>(scratch.queries), distance, distance};
  const Operands values{key_rows, d_outs, distance, value_distance};
  const Operands last{tail, d_outs + whole * kTileBf16, kTileBf16, value_distance};
  for (i64 head = 0; head < shape.head_tiles; head += 2) {
    for (i64 key = 0; key < key_tiles; key += 2) {
      zero_results();
      scores.multiply(key, head, shape.steps);
      turn_results(shape, key, head, scratch.scores);
      zero_results();
      values.multiply(key, head, whole);
      if (whole < shape.value_steps) last.multiply(key, head, 1);
      turn_results(shape, key, head, scratch.d_scores);
    }
  }
}

// [head][128 keys], bf16 in the upper halves of f32, as rows of keys; zero for heads that do not exist.
static void pack_turned(const Shape& shape, const f32* scores, i64 key_tiles, bf16* to) {
  const __m512i upper = _mm512_set1_epi32(static_cast<i32>(0xffff0000));
  for (i64 key = 0; key < key_tiles; ++key) {
    for (i64 s = 0; s < shape.head_steps; ++s, to += kTileBf16) {
      __m512i x[16];
#pragma GCC unroll 16
      for (i64 i = 0; i < kTile; ++i) {
        const i64 h = s * cpu::kGemmStep + 2 * i;
        const f32* row = scores + h * cpu::kGemmBlock + key * kTile;
        x[i] = h < shape.heads ? _mm512_srli_epi32(_mm512_load_si512(row), 16) : _mm512_setzero_si512();
        if (h + 1 < shape.heads)
          x[i] = _mm512_or_si512(x[i], _mm512_and_si512(_mm512_load_si512(row + cpu::kGemmBlock), upper));
      }
      avx512::transpose_16x16(x);
#pragma GCC unroll 16
      for (i64 i = 0; i < kTile; ++i) _mm512_store_si512(to + i * 32, x[i]);
    }
  }
}

// Four result tiles of d_q, heads x columns.
GLM5_INLINE f32* d_q_tiles(const Shape& shape, i64 head, i64 column, const BwdScratch& scratch) {
  return scratch.d_q + (head / 2 * (shape.column_tiles / 2) + column / 2) * 4 * kTileF32;
}

static void add_to_d_q(const Shape& shape, const bf16* const* rows, i64 keys, const BwdScratch& scratch) {
  const i64 key_steps = ceil_div(keys, cpu::kGemmStep);
  pack_columns([&](i64 i) { return rows[i]; }, keys, shape.dim, scratch.pairs);
  pack_scores(scratch.scores, shape.heads, keys, shape.head_tiles, scratch.tiles);
  const Operands operands{scratch.tiles, scratch.pairs, key_steps * kTileBf16, key_steps * kTileBf16};
  for (i64 head = 0; head < shape.head_tiles; head += 2) {
    for (i64 column = 0; column < shape.column_tiles; column += 2) {
      f32* results = d_q_tiles(shape, head, column, scratch);
      load_results(results);
      operands.multiply(head, column, key_steps);
      store_results(results);
    }
  }
}

// Rows of d_kv, `stride` apart; there is room for whole tiles.
static void contribute(const Shape& shape, i64 keys, f32* rows, i64 stride, const BwdScratch& scratch) {
  const i64 key_tiles = ceil_div(keys, cpu::kGemmStep) * 2, distance = shape.head_steps * kTileBf16;
  bf16* turned_scores = reinterpret_cast<bf16*>(scratch.turned_scores);
  bf16* turned_weights = reinterpret_cast<bf16*>(scratch.turned_weights);
  pack_turned(shape, scratch.scores, key_tiles, turned_scores);
  pack_turned(shape, scratch.d_scores, key_tiles, turned_weights);
  const Operands of_q{turned_scores, reinterpret_cast<const bf16*>(scratch.query_panels), distance, distance};
  const Operands of_d_out{turned_weights, reinterpret_cast<const bf16*>(scratch.d_out_panels), distance, distance};
  for (i64 key = 0; key < key_tiles; key += 2) {
    for (i64 column = 0; column < shape.column_tiles; column += 2) {
      zero_results();
      of_q.multiply(key, column, shape.head_steps);
      if (column * kTile < shape.v_dim) of_d_out.multiply(key, column, shape.head_steps);
      f32* corner = rows + key * kTile * stride + column * kTile;
      _tile_stored(0, corner, stride * 4);
      _tile_stored(1, corner + kTile, stride * 4);
      _tile_stored(2, corner + kTile * stride, stride * 4);
      _tile_stored(3, corner + kTile * stride + kTile, stride * 4);
    }
  }
  memory_barrier();
}

static void store_d_q(const SparseMlaAttentionBwdArgs& args, const Shape& shape, i64 token, const BwdScratch& scratch) {
  for (i64 h = 0; h < shape.heads; ++h) {
    for (i64 c = 0; c < shape.dim; c += kTile) {
      const f32* tiles = d_q_tiles(shape, h / kTile / 2 * 2, c / kTile / 2 * 2, scratch);
      const f32* row = tiles + (h / kTile % 2 * 2 + c / kTile % 2) * kTileF32 + h % kTile * kTile;
      avx512::store_f32x16(args.d_q.at(token, h, c), _mm512_load_ps(row), avx512::first_of_16(shape.dim - c));
    }
  }
}

struct Kernel {
  static void differentiate_token(const Block& block, i64 token, i64 count, const BwdScratch& scratch) {
    const SparseMlaAttentionBwdArgs& args = block.args;
    const Shape shape(args);
    pack_heads(args.q, token, 0, shape.heads, shape.head_tiles, reinterpret_cast<bf16*>(scratch.queries));
    pack_heads(args.d_out, token, 0, shape.heads, shape.head_tiles, reinterpret_cast<bf16*>(scratch.d_outs));
    pack_columns([&](i64 h) { return args.q.at(token, h, 0); }, shape.heads, shape.dim,
                 reinterpret_cast<bf16*>(scratch.query_panels));
    pack_columns([&](i64 h) { return args.d_out.at(token, h, 0); }, shape.heads, shape.v_dim,
                 reinterpret_cast<bf16*>(scratch.d_out_panels));
    for (i64 i = 0; i < shape.head_tiles * shape.column_tiles * kTileF32; i += kTile)
      _mm512_store_ps(scratch.d_q + i, _mm512_setzero_ps());
    for (i64 first = 0; first < count; first += cpu::kGemmBlock) {
      const i64 keys = smaller(cpu::kGemmBlock, count - first);
      multiply_keys(shape, scratch.rows + first, keys, scratch);
      sparse_mla::prefetch_rows(scratch.rows, smaller(first + cpu::kGemmBlock, count),
                                smaller(first + 2 * cpu::kGemmBlock, count), 0, 2 * shape.dim);
      for (i64 h = 0; h < shape.heads; ++h)
        sparse_mla::differentiate_scores<avx512::Lanes>(args, token, h, keys, scratch);
      add_to_d_q(shape, scratch.rows + first, keys, scratch);
      contribute(shape, keys, block.contribution(token, first), block.padded_dim(), scratch);
    }
    store_d_q(args, shape, token, scratch);
  }
};

}  // namespace

void sparse_mla_attention_bwd(const Block& block, i64 begin, i64 end, i64 thread) {
  configure_tiles();
  sparse_mla::differentiate<Kernel>(block, begin, end, thread);
  release_tiles();
}

}  // namespace glm5::amx
