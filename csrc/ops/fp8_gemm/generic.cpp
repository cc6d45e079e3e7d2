// The summation tree spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "cpu/gemm.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::generic {
namespace {

struct Kernel {
  static constexpr i64 kPanel = 1;

  static cpu::FloatState use_floats() { return cpu::use_default_floats(); }

  // Group g of a row, zero beyond k.
  static void load(const Tensor<const e4m3, 2>& from, i64 row, i64 g, f32* to) {
    const i64 first_k = g * kFp8Group, valid = from.shape[1] - first_k;
    for (i64 k = 0; k < kFp8Group; ++k) to[k] = k < valid ? to_f32(*from.at(row, first_k + k)) : 0.0f;
  }

  static void pack(const Fp8GemmArgs& args, i64, i64 row, i64 rows, i64 g, f32* to) {
    for (i64 i = 0; i < rows; ++i) load(args.a, row + i, g, to + i * kFp8Group);
  }

  static cpu::Stretches rows_at(const Fp8GemmArgs&, const cpu::GemmItem&, i64) { return {}; }

  static void multiply_panel(const Fp8GemmArgs& args, const cpu::GemmItem& item, i64 g, const f32* a, i64 j,
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

  static void store(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
    for (i64 j = 0; j < item.columns; ++j) {
      for (i64 i = 0; i < item.rows; ++i)
        cpu::store_total(args.out, totals[j * item.rows + i], args.accumulate, item.first_row + i,
                         item.first_column + j);
    }
  }
};

}  // namespace

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  cpu::pack_items<Kernel>(task, begin, end);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  cpu::multiply_items<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::generic
