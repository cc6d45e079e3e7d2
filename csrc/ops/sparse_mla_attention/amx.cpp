// sparse_mla_attention with AMX.
//
// Scores: 64 chosen keys are copied into tiles of rows, 72 KiB of the L2 cache, and multiplied with all heads, which
// lie as pairs: a result tile holds 16 keys x 16 heads and is turned as it goes to the scores. Values: 128 columns of
// all chosen keys are brought into pairs, 512 KiB at 2048 keys, and multiplied with the probabilities of all heads,
// tiles of rows: a result tile holds 16 heads x 16 columns and stays a tile from the first key to the last.
//
// A token of 64 heads and 2048 keys of 576 takes 17,408 TDPBF16PS, 278,528 cycles. Beside them: 37,000 loads and as
// many stores of 64 bytes for the keys' tiles, 65,000 shuffles for the values' pairs, 33,000 to turn the scores, and
// 8,192 vectors of exp at some 20 instructions each. Calculated, not measured.
//
// Tiles: tmm0..3 results; tmm4, tmm5 rows; tmm6, tmm7 pairs (cpu/amx.h).
#include "ops/sparse_mla_attention/tiles_amx.h"

namespace glm5::amx {
namespace {

using sparse_mla::Item;
using sparse_mla::kTiledColumns;
using sparse_mla::kTiledKeys;
using sparse_mla::Scratch;

struct Shape {
  i64 heads, head_tiles, dim, steps, key_steps;

  GLM5_INLINE Shape(const SparseMlaAttentionArgs& args, const Item& item, i64 count)
      : heads(item.heads),
        head_tiles(ceil_div(item.heads, kTile)),
        dim(args.q.shape[2]),
        steps(ceil_div(dim, cpu::kGemmStep)),
        key_steps(ceil_div(count, cpu::kGemmStep)) {}
};

// The products of 64 keys with all heads.
static void multiply_64_keys(const Shape& shape, const bf16* keys, const bf16* queries, f32* scores) {
  alignas(64) f32 results[4 * kTileF32];
  const i64 distance = shape.steps * kTileBf16;
  const auto turn = [&](i64 i, i64 key_tile, i64 head_tile) {
    turn_result(results + i * kTileF32, shape.heads - head_tile * kTile,
                scores + head_tile * kTile * cpu::kGemmBlock + key_tile * kTile);
  };
  i64 head = 0;
  for (; head + 2 <= shape.head_tiles; head += 2) {
    for (i64 key = 0; key < kTiledKeys / kTile; key += 2) {
      zero_results();
      multiply_2x2(keys + key * distance, keys + (key + 1) * distance, queries + head * distance,
                   queries + (head + 1) * distance, shape.steps);
      store_results(results);
      for (i64 i = 0; i < 4; ++i) turn(i, key + i / 2, head + i % 2);
    }
  }
  if (head == shape.head_tiles) return;
  zero_results();
  multiply_4x1(keys, distance, queries + head * distance, shape.steps);
  store_results(results);
  for (i64 i = 0; i < 4; ++i) turn(i, i, head);
}

// A result tile of 16 heads x 16 columns goes to out.
GLM5_INLINE void store_out(const SparseMlaAttentionArgs& args, const Item& item, const f32* result, i64 first_head,
                           i64 column, const f32* weights) {
  const __mmask16 live = avx512::first_of_16(args.out.shape[2] - column);
  for (i64 i = 0; i < smaller(kTile, item.heads - first_head); ++i) {
    const __m512 o = _mm512_mul_ps(_mm512_load_ps(result + i * kTile), _mm512_set1_ps(weights[first_head + i]));
    avx512::store_f32x16(args.out.at(item.token, item.first_head + first_head + i, column), o, live);
  }
}

// Up to 128 columns of out.
static void multiply_columns(const SparseMlaAttentionArgs& args, const Item& item, const Shape& shape, i64 first_column,
                             i64 columns, const Scratch& scratch) {
  alignas(64) f32 results[4 * kTileF32];
  const bf16* values = reinterpret_cast<const bf16*>(scratch.panel);
  const i64 distance = shape.key_steps * kTileBf16;
  i64 head = 0;
  for (; head + 2 <= shape.head_tiles; head += 2) {
    for (i64 c = 0; c < columns; c += 2 * kTile) {
      const bf16* pairs = values + c / kTile * distance;
      zero_results();
      multiply_2x2(scratch.tiles + head * distance, scratch.tiles + (head + 1) * distance, pairs, pairs + distance,
                   shape.key_steps);
      store_results(results);
      for (i64 i = 0; i < 4; ++i) {
        if (c + i % 2 * kTile < columns)
          store_out(args, item, results + i * kTileF32, (head + i / 2) * kTile, first_column + c + i % 2 * kTile,
                    scratch.weights);
      }
    }
  }
  if (head == shape.head_tiles) return;
  for (i64 c = 0; c < columns; c += 4 * kTile) {
    zero_results();
    multiply_1x4(scratch.tiles + head * distance, values + c / kTile * distance, distance, shape.key_steps);
    store_results(results);
    for (i64 i = 0; i < 4; ++i) {
      if (c + i * kTile < columns)
        store_out(args, item, results + i * kTileF32, head * kTile, first_column + c + i * kTile, scratch.weights);
    }
  }
}

struct Kernel {
  using Lanes = avx512::Lanes;

  GLM5_INLINE static void begin() { configure_tiles(); }
  GLM5_INLINE static void end() { release_tiles(); }

  static void multiply_keys(const SparseMlaAttentionArgs& args, const Item& item, i64 count, const Scratch& scratch) {
    const Shape shape(args, item, count);
    bf16* queries = reinterpret_cast<bf16*>(scratch.queries);
    bf16* keys = reinterpret_cast<bf16*>(scratch.panel);
    pack_heads(args.q, item.token, item.first_head, item.heads, shape.head_tiles, queries);
    for (i64 first = 0; first < count; first += kTiledKeys) {
      pack_keys(scratch.rows + first, count - first, kTiledKeys / kTile, 0, shape.dim, keys);
      sparse_mla::prefetch_rows(scratch.rows, smaller(first + kTiledKeys, count),
                                smaller(first + 2 * kTiledKeys, count), 0, 2 * shape.dim);
      multiply_64_keys(
          shape, keys, queries,
          scratch.scores + first / cpu::kGemmBlock * item.heads * cpu::kGemmBlock + first % cpu::kGemmBlock);
    }
  }

  static void multiply_values(const SparseMlaAttentionArgs& args, const Item& item, i64 count, const Scratch& scratch) {
    const Shape shape(args, item, count);
    const i64 v_dim = args.out.shape[2];
    pack_scores(scratch.scores, item.heads, count, shape.head_tiles, scratch.tiles);
    for (i64 c = 0; c < v_dim; c += kTiledColumns) {
      const i64 columns = smaller(kTiledColumns, v_dim - c);
      pack_columns([&](i64 i) { return scratch.rows[i] + c; }, count, columns, reinterpret_cast<bf16*>(scratch.panel));
      multiply_columns(args, item, shape, c, columns, scratch);
    }
  }
};

}  // namespace

void sparse_mla_attention(const sparse_mla::Task& task, i64 begin, i64 end, i64 thread) {
  sparse_mla::attend<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::amx
