// gemm with AMX, for bf16. Packing turns a into pairs, [block of 128 k][16 rows][4 steps]. An item takes 64 columns of
// b, 256 k at a time: they are laid into tiles (32 KiB, which stay in the L1 cache) and used for all rows of the chunk,
// 32 x 32 results at a time; the totals rest in memory between, exactly as they are. A step of the tree is a TDPBF16PS.
#include "cpu/amx.h"
#include "cpu/float_environment.h"
#include "ops/gemm/gemm.h"

namespace glm5::amx {
namespace {

constexpr i64 kColumnTiles = cpu::kGemmTile / kTile;
constexpr i64 kBlockBf16 = kSteps * kTileBf16;   // one block of 16 rows of a
constexpr i64 kDepth = 2 * cpu::kGemmBlock;      // k of b held at a time
constexpr i64 kColumnBf16 = kTile * kDepth;      // 16 columns of it

GLM5_INLINE __m512i load_pairs(const bf16* even, const bf16* odd, __mmask16 even_live, __mmask16 odd_live) {
  const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(even_live, even));
  const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(odd_live, odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// 16 rows x 32 k from `from`, zero beyond `rows` and `depth`: x[i] has the 32 k of row i, or x[p] has pair p of all
// rows.
template <bool AsPairs>
GLM5_INLINE void load_tile(const bf16* from, i64 row_stride, i64 k_stride, i64 rows, i64 depth, __m512i (&x)[16]) {
  if (k_stride == 1) {
#pragma GCC unroll 16
    for (i64 i = 0; i < 16; ++i) {
      const __mmask32 live = i < rows ? avx512::first_of_32(depth) : 0;
      x[i] = _mm512_maskz_loadu_epi16(live, from + (i < rows ? i * row_stride : 0));
    }
    if constexpr (AsPairs) avx512::transpose_16x16(x);
  } else {
    const __mmask16 live = avx512::first_of_16(rows);
#pragma GCC unroll 16
    for (i64 p = 0; p < 16; ++p) {
      const i64 even = 2 * p < depth ? 2 * p : 0, odd = 2 * p + 1 < depth ? 2 * p + 1 : 0;
      x[p] = load_pairs(from + even * k_stride, from + odd * k_stride, 2 * p < depth ? live : 0,
                        2 * p + 1 < depth ? live : 0);
    }
    if constexpr (!AsPairs) avx512::transpose_16x16(x);
  }
}

GLM5_INLINE void store_tile(bf16* to, const __m512i (&x)[16]) {
#pragma GCC unroll 16
  for (i64 i = 0; i < 16; ++i) _mm512_store_si512(to + i * 32, x[i]);
}

// `steps` steps of 64 columns of b from first_k on, as tiles of rows: [column tile][step].
void load_b(const GemmArgs& args, const cpu::GemmItem& where, i64 first_k, i64 steps, bf16* to) {
  const Tensor<const bf16, 3> b = args.b.as<const bf16>();
  const i64 k = args.b.shape[2];
  for (i64 c = 0; c < kColumnTiles; ++c) {
    const i64 columns = smaller(kTile, larger(0, where.columns - c * kTile));
    const i64 column = where.first_column + (columns > 0 ? c * kTile : 0);
    for (i64 s = 0; s < steps; ++s) {
      const i64 step_k = first_k + s * cpu::kGemmStep;
      __m512i x[16];
      load_tile<false>(b.at(where.batch, column, step_k), b.stride[1], b.stride[2], columns, k - step_k, x);
      store_tile(to + c * kColumnBf16 + s * kTileBf16, x);
    }
  }
}

// One set of four result tiles through up to two blocks of a.
template <class Multiply>
GLM5_INLINE void add_steps(f32* totals, i64 distance, bool is_first, i64 steps, const Multiply& multiply) {
  if (is_first) {
    zero_results();
  } else {
    load_results(totals, distance);
  }
  multiply(0, smaller(steps, kSteps));
  if (steps > kSteps) multiply(1, steps - kSteps);
  store_results(totals, distance);
}

struct Item {
  const bf16* a;  // pairs, [block][row tile][step][16 pairs][16][2]
  i64 row_tiles;
  bf16* b;        // [column tile][step][16][32]
  f32* totals;    // [row tile pair][column tile pair][4]; an odd last row tile: [4 column tiles]
};

// Where the results of (column tile, row tile) are.
GLM5_INLINE f32* total_of(const Item& item, i64 c, i64 t) {
  f32* totals = item.totals + t / 2 * 2 * kColumnTiles * kTileF32;
  if (t + 1 == item.row_tiles && t % 2 == 0) return totals + c * kTileF32;
  return totals + (c / 2 * 4 + c % 2 * 2 + t % 2) * kTileF32;
}

void multiply_steps(const Item& item, i64 column_tiles, i64 first_k, i64 steps) {
  const i64 block_bf16 = item.row_tiles * kBlockBf16;
  const bf16* a = item.a + first_k / cpu::kGemmBlock * block_bf16;
  i64 t = 0;
  for (; t + 2 <= item.row_tiles; t += 2) {
    for (i64 c = 0; c < column_tiles; c += 2) {
      const auto multiply = [&](i64 block, i64 count) {
        const bf16* pairs = a + block * block_bf16 + t * kBlockBf16;
        const bf16* rows = item.b + c * kColumnBf16 + block * kBlockBf16;
        multiply_2x2(rows, rows + kColumnBf16, pairs, pairs + kBlockBf16, count);
      };
      add_steps(total_of(item, c, t), kTileF32, first_k == 0, steps, multiply);
    }
  }
  if (t < item.row_tiles) {
    const auto multiply = [&](i64 block, i64 count) {
      multiply_4x1(item.b + block * kBlockBf16, kColumnBf16, a + block * block_bf16 + t * kBlockBf16, count);
    };
    add_steps(total_of(item, 0, t), kTileF32, first_k == 0, steps, multiply);
  }
}

template <class T>
GLM5_INLINE void store_item(const GemmArgs& args, const cpu::GemmItem& where, const Item& item) {
  const Tensor<T, 3> out = args.out.as<T>();
  for (i64 t = 0; t < item.row_tiles; ++t) {
    for (i64 c = 0; c * kTile < where.columns; ++c)
      store_result(out.at(where.batch, where.first_row + t * kTile, where.first_column + c * kTile), out.stride[1],
                   total_of(item, c, t), where.rows - t * kTile, where.columns - c * kTile, args.accumulate);
  }
}

void multiply_item(const cpu::GemmTask<GemmArgs>& task, const cpu::GemmItem& where,
                   const cpu::GemmWorkspace& workspace) {
  const GemmArgs& args = task.args;
  const i64 k = task.part.k;
  const Item item{reinterpret_cast<const bf16*>(workspace.packed_of(task.part, where.batch)),
                  ceil_div(where.rows, kTile), reinterpret_cast<bf16*>(workspace.panel), workspace.totals};
  if (k == 0) {
    for (i64 i = 0; i < kColumnTiles * item.row_tiles * kTileF32; i += 16)
      _mm512_store_ps(item.totals + i, _mm512_setzero_ps());
  }
  for (i64 first_k = 0; first_k < k; first_k += kDepth) {
    const i64 steps = ceil_div(smaller(kDepth, k - first_k), cpu::kGemmStep);
    load_b(args, where, first_k, steps, item.b);
    multiply_steps(item, ceil_div(where.columns, kTile), first_k, steps);
  }
  if (args.out.dtype == Float::f32) {
    store_item<f32>(args, where, item);
  } else {
    store_item<bf16>(args, where, item);
  }
}
static_assert(kColumnTiles * kColumnBf16 * 2 <= cpu::kGemmPanelBytes);

}  // namespace

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  const Tensor<const bf16, 3> a = task.args.a.as<const bf16>();
  const cpu::GemmPart& part = task.part;
  const cpu::GemmWorkspace workspace(task.args.workspace, part, 0);
  const i64 row_tiles = ceil_div(part.rows, kTile);
  for (i64 i = begin; i < end; ++i) {
    const i64 batch = part.first_batch + i / row_tiles, t = i % row_tiles;
    bf16* packed = reinterpret_cast<bf16*>(workspace.packed_of(part, batch));
    for (i64 k = 0; k < part.k; k += cpu::kGemmStep) {
      const i64 block = k / cpu::kGemmBlock, step = k % cpu::kGemmBlock / cpu::kGemmStep;
      __m512i x[16];
      load_tile<true>(a.at(batch, part.first_row + t * kTile, k), a.stride[1], a.stride[2], part.rows - t * kTile,
                      part.k - k, x);
      store_tile(packed + (block * row_tiles + t) * kBlockBf16 + step * kTileBf16, x);
    }
  }
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const cpu::GemmWorkspace workspace(task.args.workspace, task.part, thread);
  configure_tiles();
  for (i64 i = begin; i < end; ++i) multiply_item(task, {task.part, i}, workspace);
  release_tiles();
  cpu::restore_floats(before);
}

}  // namespace glm5::amx
