// The summation trees spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "core/fp8.h"
#include "cpu/float_environment.h"
#include "cpu/gemm.h"
#include "ops/gemm/gemm.h"

namespace glm5::generic {
namespace {

f32 load(const FloatTensor<3>& from, i64 batch, i64 row, i64 k) {
  if (k >= from.shape[2]) return 0.0f;
  return from.dtype == Float::f32 ? *from.as<f32>().at(batch, row, k) : to_f32(*from.as<bf16>().at(batch, row, k));
}

f32 add_steps(const f32* a, const f32* b, i64 k_end, f32 total) {
  for (i64 step = 0; step < k_end; step += cpu::kGemmStep) {
    f32 even = 0.0f, odd = 0.0f;
    for (i64 k = step; k < step + cpu::kGemmStep; k += 2) {
      even = __builtin_fmaf(a[k], b[k], even);
      odd = __builtin_fmaf(a[k + 1], b[k + 1], odd);
    }
    total += even + odd;
  }
  return total;
}

f32 add_part(const f32* a, const f32* b, i64 k_end, f32 total) {
  f32 part = 0.0f;
  for (i64 k = 0; k < k_end; ++k) part = __builtin_fmaf(a[k], b[k], part);
  return total + part;
}

void store_value(const FloatTensor<3>& out, i64 batch, i64 row, i64 column, f32 total, bool accumulate) {
  if (out.dtype == Float::f32) {
    f32* value = out.as<f32>().at(batch, row, column);
    *value = accumulate ? *value + total : total;
  } else {
    bf16* value = out.as<bf16>().at(batch, row, column);
    *value = to_bf16(accumulate ? to_f32(*value) + total : total);
  }
}

struct Kernel {
  static constexpr i64 kPanel = 1;

  static void pack(const GemmArgs& args, i64 batch, i64 row, i64 rows, i64 block, f32* to) {
    for (i64 i = 0; i < rows; ++i) {
      for (i64 k = 0; k < cpu::kGemmBlock; ++k)
        to[i * cpu::kGemmBlock + k] = load(args.a, batch, row + i, block * cpu::kGemmBlock + k);
    }
  }

  static cpu::Stretches rows_at(const GemmArgs&, const cpu::GemmItem&, i64) { return {}; }

  static void multiply_panel(const GemmArgs& args, const cpu::GemmItem& item, i64 block, const f32* a, i64 j,
                             const cpu::GemmWorkspace& workspace, f32* totals) {
    const auto add = args.a.dtype == Float::f32 ? add_part : add_steps;
    const i64 first_k = block * cpu::kGemmBlock, k_end = smaller(cpu::kGemmBlock, args.b.shape[2] - first_k);
    for (i64 k = 0; k < cpu::kGemmBlock; ++k)
      workspace.panel[k] = load(args.b, item.batch, item.first_column + j, first_k + k);
    for (i64 i = 0; i < item.rows; ++i) totals[i] = add(a + i * cpu::kGemmBlock, workspace.panel, k_end, totals[i]);
  }

  static void store(const GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
    for (i64 j = 0; j < item.columns; ++j) {
      for (i64 i = 0; i < item.rows; ++i)
        store_value(args.out, item.batch, item.first_row + i, item.first_column + j, totals[j * item.rows + i],
                    args.accumulate);
    }
  }
};

}  // namespace

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  cpu::pack_items<Kernel>(task, begin, end);
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const bool in_f32 = task.args.a.dtype == Float::f32;
  const cpu::FloatState before = in_f32 ? cpu::use_default_floats() : cpu::use_flushing_floats();
  cpu::multiply_items<Kernel>(task, begin, end, thread);
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
