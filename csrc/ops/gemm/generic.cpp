// The summation trees spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "cpu/gemm.h"
#include "ops/gemm/gemm.h"

namespace glm5::generic {
namespace {

f32 add_products(const f32* a, const f32* b, i64 k_end, f32 total, bf16) {
  for (i64 step = 0; step < k_end; step += cpu::kGemmStep) total += cpu::multiply_step(a + step, b + step);
  return total;
}

f32 add_products(const f32* a, const f32* b, i64 k_end, f32 total, f32) {
  f32 part = 0.0f;
  for (i64 k = 0; k < k_end; ++k) part = __builtin_fmaf(a[k], b[k], part);
  return total + part;
}

// For operands of type T.
template <class T>
struct Kernel {
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

}  // namespace

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  if (task.args.a.dtype == Float::f32) return cpu::pack_items<Kernel<f32>>(task, begin, end);
  cpu::pack_items<Kernel<bf16>>(task, begin, end);
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  if (task.args.a.dtype == Float::f32) return cpu::multiply_items<Kernel<f32>>(task, begin, end, thread);
  cpu::multiply_items<Kernel<bf16>>(task, begin, end, thread);
}

}  // namespace glm5::generic
