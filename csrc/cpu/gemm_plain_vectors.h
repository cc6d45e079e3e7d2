// Products of bf16 or f32 with vectors of any width. An item brings 128 k of its rows of a into the L2 cache as f32,
// then panel after panel of b (two vectors of columns, transposed where b's unit stride runs along k) into the L1
// cache, and uses each for all its rows. bf16 follows the tree of AMX, an even and an odd chain for each result; f32
// has one chain.
#pragma once

#include "core/gemm_args.h"
#include "cpu/gemm_vectors.h"

namespace glm5::gemm_plain_vectors {

// total += part.
template <class Lanes, int Rows>
GLM5_INLINE void add_part(const f32* a, const f32* panel, i64 k_end, f32* totals) {
  typename Lanes::F32 part[Rows][2];
  cpu::multiply_chain<Lanes, Rows>(a, panel, round_up(k_end, 8), part);
#pragma GCC unroll 32
  for (int i = 0; i < 2 * Rows; ++i) {
    f32* total = totals + i * Lanes::kCount;
    Lanes::store(total, Lanes::load(total) + part[i / 2][i % 2]);
  }
}

// All rows of an item against one panel.
template <class Lanes, class T>
static void add_panel(const f32* a, i64 rows, const f32* panel, i64 k_end, f32* totals) {
  if constexpr (sizeof(T) == 4) {
    cpu::for_row_blocks<Lanes::kChainRows>(rows, [&]<int Rows>(cpu::RowCount<Rows>, i64 i) [[gnu::always_inline]] {
      add_part<Lanes, Rows>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * 2 * Lanes::kCount);
    });
  } else {
    cpu::for_row_blocks<Lanes::kStepRows>(rows, [&]<int Rows>(cpu::RowCount<Rows>, i64 i) [[gnu::always_inline]] {
      cpu::add_steps<Lanes, Rows>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * 2 * Lanes::kCount,
                                  2 * Lanes::kCount);
    });
  }
}

// For operands of type T, as cpu/gemm.h wants it.
template <class Lanes, class T>
struct Kernel {
  static constexpr i64 kPanel = 2 * Lanes::kCount;

  GLM5_INLINE static cpu::FloatState use_floats() {
    return sizeof(T) == 4 ? cpu::use_default_floats() : cpu::use_flushing_floats();
  }

  GLM5_INLINE static void pack(const GemmArgs& args, i64 batch, i64 row, i64 rows, i64 block, f32* to) {
    const Tensor<const T, 3> a = args.a.as<const T>();
    const i64 k = block * cpu::kGemmBlock, valid = smaller(cpu::kGemmBlock, a.shape[2] - k);
    avx2::pack(to, cpu::kGemmBlock, a.at(batch, row, k), a.stride[1], a.stride[2], rows, valid, rows,
               round_up(valid, cpu::kGemmStep), 0);
  }

  GLM5_INLINE static cpu::Stretches rows_at(const GemmArgs& args, const cpu::GemmItem& item, i64 block) {
    const Tensor<const T, 3> a = args.a.as<const T>();
    const i64 k = block * cpu::kGemmBlock, valid = smaller(cpu::kGemmBlock, a.shape[2] - k), size = sizeof(T);
    const u8* from = reinterpret_cast<const u8*>(a.at(item.batch, item.first_row, k));
    if (a.stride[2] == 1) return {from, valid * size, a.stride[1] * size, item.rows};
    return {from, item.rows * size, a.stride[2] * size, valid};
  }

  GLM5_INLINE static void multiply_panel(const GemmArgs& args, const cpu::GemmItem& item, i64 block, const f32* a,
                                         i64 j, const cpu::GemmWorkspace& workspace, f32* totals) {
    const Tensor<const T, 3> b = args.b.as<const T>();
    const i64 k = block * cpu::kGemmBlock, k_end = smaller(cpu::kGemmBlock, b.shape[2] - k);
    // What comes next: of the same columns, or the columns beside them.
    const i64 ahead = item.rows < cpu::kGemmFewRows ? cpu::kGemmBlock * b.stride[2] : kPanel * b.stride[1];
    if constexpr (kPanel == 16) {
      const bool is_whole = b.stride[2] == 1 && k_end == cpu::kGemmBlock && item.columns - j >= kPanel;
      const T* columns = b.at(item.batch, item.first_column + j, k);
      if (is_whole && item.rows == 1) return avx2::add_columns<1>(a, columns, b.stride[1], totals);
      if (is_whole && item.rows == 2) return avx2::add_columns<2>(a, columns, b.stride[1], totals);
    }
    avx2::pack(workspace.panel, kPanel, b.at(item.batch, item.first_column + j, k), b.stride[2], b.stride[1], k_end,
               smaller(kPanel, item.columns - j), round_up(k_end, cpu::kGemmStep), kPanel, ahead);
    add_panel<Lanes, T>(a, item.rows, workspace.panel, k_end, totals);
  }

  GLM5_INLINE static void store(const GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
    avx2::store_item<kPanel>(matrix_of(args.out, item.batch), item, totals, args.accumulate);
  }
};

template <class Lanes>
GLM5_INLINE void pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end) {
  if (task.args.a.dtype == Float::f32) return cpu::pack_items<Kernel<Lanes, f32>>(task, begin, end);
  cpu::pack_items<Kernel<Lanes, bf16>>(task, begin, end);
}

template <class Lanes>
GLM5_INLINE void multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  if (task.args.a.dtype == Float::f32) return cpu::multiply_items<Kernel<Lanes, f32>>(task, begin, end, thread);
  cpu::multiply_items<Kernel<Lanes, bf16>>(task, begin, end, thread);
}

}  // namespace glm5::gemm_plain_vectors
