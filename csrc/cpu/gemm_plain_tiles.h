// Products of bf16 with AMX (cpu/gemm_tiles.h). A step of the tree is a TDPBF16PS: the tiles start as the totals and
// end as the totals, which rest in memory between blocks exactly as they are.
#pragma once

#include "core/gemm_args.h"
#include "cpu/gemm_tiles.h"

namespace glm5::gemm_plain_tiles {

using namespace amx;

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

struct Kernel {
  static constexpr i64 kUnits = kPanelTiles * kSteps;  // tiles of a panel

  const GemmArgs& args;
  const TileItem& item;

  GLM5_INLINE Kernel(const GemmArgs& args, const TileItem& item) : args(args), item(item) {}
  GLM5_INLINE static cpu::FloatState use_floats() { return cpu::use_flushing_floats(); }
  GLM5_INLINE FloatTensor<2> out() const { return matrix_of(args.out, item.where.batch); }
  GLM5_INLINE i64 steps_of(i64 block) const {
    return ceil_div(smaller(cpu::kGemmBlock, args.a.shape[2] - block * cpu::kGemmBlock), cpu::kGemmStep);
  }

  GLM5_INLINE void load_b(i64 block, i64 panel, i64 first, i64 last, bf16* to) const {
    const Tensor<const bf16, 3> b = args.b.as<const bf16>();
    const i64 steps = steps_of(block);
    for (i64 unit = first; unit < last; ++unit) {
      const i64 column = panel * cpu::kGemmTile + unit / kSteps * kTile, step = unit % kSteps;
      const i64 columns = larger(0, item.where.columns - column), k = (block * kSteps + step) * cpu::kGemmStep;
      if (step >= steps) continue;
      const bf16* from = b.at(item.where.batch, item.where.first_column + (columns > 0 ? column : 0), k);
      __m512i x[16];
      load_tile<false>(from, b.stride[1], b.stride[2], columns, b.shape[2] - k, x);
      store_tile(to + unit * kTileBf16, x);
    }
  }

  GLM5_INLINE void begin_panel(i64, i64) {}
  GLM5_INLINE void end_panel() {}
  GLM5_INLINE void begin(const Results& results, i64 block) {
    if (block == 0) {
      zero_results();
    } else {
      load_results(results.total);
    }
  }
  GLM5_INLINE void end(const Results& results) { store_results(results.total); }
};

GLM5_INLINE void pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end) {
  const Tensor<const bf16, 3> a = task.args.a.as<const bf16>();
  const cpu::GemmPart& part = task.part;
  const cpu::GemmWorkspace workspace(task, 0);
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

GLM5_INLINE void multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  multiply_tiles<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::gemm_plain_tiles
