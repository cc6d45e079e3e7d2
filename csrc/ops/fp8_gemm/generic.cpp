// The summation tree spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "core/fp8.h"
#include "cpu/float_environment.h"
#include "cpu/gemm.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::generic {
namespace {

// part(g) of one result.
f32 part_of(const f32* a, const f32* b) {
  f32 part = 0.0f;
  for (i64 step = 0; step < cpu::kGemmBlock; step += cpu::kGemmStep) {
    f32 even = 0.0f, odd = 0.0f;
    for (i64 k = step; k < step + cpu::kGemmStep; k += 2) {
      even = __builtin_fmaf(a[k], b[k], even);
      odd = __builtin_fmaf(a[k + 1], b[k + 1], odd);
    }
    part += even + odd;
  }
  return part;
}

// Group g of one row as f32, padded with zeros.
void decode(const Tensor<const e4m3, 2>& from, i64 row, i64 g, f32* to) {
  const i64 values = from.shape[1] - g * kFp8Group;
  for (i64 k = 0; k < kFp8Group; ++k) to[k] = k < values ? to_f32(from.at(row, g * kFp8Group)[k]) : 0.0f;
}

void store_value(const FloatTensor<2>& out, i64 row, i64 column, f32 total, bool accumulate) {
  if (out.dtype == Float::f32) {
    f32* value = out.as<f32>().at(row, column);
    *value = accumulate ? *value + total : total;
  } else {
    bf16* value = out.as<bf16>().at(row, column);
    *value = to_bf16(accumulate ? to_f32(*value) + total : total);
  }
}

struct Kernel {
  static constexpr i64 kPanel = 1;

  static void pack(const Fp8GemmArgs& args, i64, i64 row, i64 rows, i64 g, f32* to) {
    for (i64 i = 0; i < rows; ++i) decode(args.a, row + i, g, to + i * kFp8Group);
  }

  static cpu::Stretches rows_at(const Fp8GemmArgs&, const cpu::GemmItem&, i64) { return {}; }

  static void multiply_panel(const Fp8GemmArgs& args, const cpu::GemmItem& item, i64 g, const f32* a, i64 j,
                             const cpu::GemmWorkspace& workspace, f32* totals) {
    const i64 column = item.first_column + j;
    const f32 column_scale = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
    decode(args.b, column, g, workspace.panel);
    for (i64 i = 0; i < item.rows; ++i) {
      const f32 scale = *args.a_scales.at(item.first_row + i, g) * column_scale;
      totals[i] = __builtin_fmaf(scale, part_of(a + i * kFp8Group, workspace.panel), totals[i]);
    }
  }

  static void store(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
    for (i64 j = 0; j < item.columns; ++j) {
      for (i64 i = 0; i < item.rows; ++i)
        store_value(args.out, item.first_row + i, item.first_column + j, totals[j * item.rows + i], args.accumulate);
    }
  }
};

}  // namespace

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  const cpu::FloatState before = cpu::use_default_floats();
  cpu::pack_items<Kernel>(task, begin, end);
  cpu::restore_floats(before);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  cpu::multiply_items<Kernel>(task, begin, end, thread);
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
