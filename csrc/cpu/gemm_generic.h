// The summation trees of matrix products spelled out, one multiply-add at a time: the answer that every instruction set
// must give to the bit.
#pragma once

#include "core/gemm_args.h"
#include "core/glm5.h"
#include "cpu/gemm.h"

namespace glm5::generic {

inline f32 add_products(const f32* a, const f32* b, i64 k_end, f32 total, bf16) {
  for (i64 step = 0; step < k_end; step += cpu::kGemmStep) total += cpu::multiply_step(a + step, b + step);
  return total;
}

inline f32 add_products(const f32* a, const f32* b, i64 k_end, f32 total, f32) {
  f32 part = 0.0f;
  for (i64 k = 0; k < k_end; ++k) part = __builtin_fmaf(a[k], b[k], part);
  return total + part;
}

// For operands of type T.
template <class T>
struct PlainKernel {
  static constexpr i64 kPanel = 1;

  static cpu::FloatState use_floats() {
    return sizeof(T) == 4 ? cpu::use_default_floats() : cpu::use_flushing_floats();
  }

  // 128 k of a row, zero beyond k.
  static void load(const FloatTensor<3>& from, i64 batch, i64 row, i64 block, f32* to) {
    const i64 first_k = block * cpu::kGemmBlock, valid = from.shape[2] - first_k;
    for (i64 k = 0; k < cpu::kGemmBlock; ++k)
      to[k] = k < valid ? to_f32(*from.as<const T>().at(batch, row, first_k + k)) : 0.0f;
  }

  static void pack(const GemmArgs& args, i64 batch, i64 row, i64 rows, i64 block, f32* to) {
    for (i64 i = 0; i < rows; ++i) load(args.a, batch, row + i, block, to + i * cpu::kGemmBlock);
  }

  static cpu::Stretches rows_at(const GemmArgs&, const cpu::GemmItem&, i64) { return {}; }

  static void multiply_panel(const GemmArgs& args, const cpu::GemmItem& item, i64 block, const f32* a, i64 j,
                             const cpu::GemmWorkspace& workspace, f32* totals) {
    const i64 k_end = smaller(cpu::kGemmBlock, args.b.shape[2] - block * cpu::kGemmBlock);
    load(args.b, item.batch, item.first_column + j, block, workspace.panel);
    for (i64 i = 0; i < item.rows; ++i)
      totals[i] = add_products(a + i * cpu::kGemmBlock, workspace.panel, k_end, totals[i], T{});
  }

  static void store(const GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
    for (i64 j = 0; j < item.columns; ++j) {
      for (i64 i = 0; i < item.rows; ++i)
        cpu::store_total(args.out, totals[j * item.rows + i], args.accumulate, item.batch, item.first_row + i,
                         item.first_column + j);
    }
  }
};

// With e4m3 weights and scales, for rows of type A.
template <class A>
struct ScaledKernel {
  using Args = ScaledGemmArgs<A>;
  static constexpr i64 kPanel = 1;

  // Subnormal numbers count as zero in the AMX unit; e4m3 has none that are subnormal in bf16.
  static cpu::FloatState use_floats() {
    return sizeof(A) == 2 ? cpu::use_flushing_floats() : cpu::use_default_floats();
  }

  // As the vectors have it, whose rows of bf16 become infinite at 2^120.
  static f32 value_of(e4m3 x) { return to_f32(x); }
  static f32 value_of(bf16 x) { return to_f32(x) * 256.0f * 0.00390625f; }

  // Group g of a row, zero beyond k.
  template <class T>
  static void load(const Tensor<const T, 2>& from, i64 row, i64 g, f32* to) {
    const i64 first_k = g * kFp8Group, valid = from.shape[1] - first_k;
    for (i64 k = 0; k < kFp8Group; ++k) to[k] = k < valid ? value_of(*from.at(row, first_k + k)) : 0.0f;
  }

  static void pack(const Args& args, i64, i64 row, i64 rows, i64 g, f32* to) {
    for (i64 i = 0; i < rows; ++i) load(args.a, row + i, g, to + i * kFp8Group);
  }

  static cpu::Stretches rows_at(const Args&, const cpu::GemmItem&, i64) { return {}; }

  static void multiply_panel(const Args& args, const cpu::GemmItem& item, i64 g, const f32* a, i64 j,
                             const cpu::GemmWorkspace& workspace, f32* totals) {
    const i64 column = item.first_column + j;
    const f32 column_scale = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
    load(args.b, column, g, workspace.panel);
    for (i64 i = 0; i < item.rows; ++i, a += kFp8Group) {
      f32 part = 0.0f;
      for (i64 k = 0; k < kFp8Group; k += cpu::kGemmStep) part += cpu::multiply_step(a + k, workspace.panel + k);
      totals[i] = __builtin_fmaf(*args.a_scales.at(item.first_row + i, g) * column_scale, part, totals[i]);
    }
  }

  static void store(const Args& args, const cpu::GemmItem& item, const f32* totals) {
    for (i64 j = 0; j < item.columns; ++j) {
      for (i64 i = 0; i < item.rows; ++i)
        cpu::store_total(args.out, totals[j * item.rows + i], args.accumulate, item.first_row + i,
                         item.first_column + j);
    }
  }
};

}  // namespace glm5::generic
