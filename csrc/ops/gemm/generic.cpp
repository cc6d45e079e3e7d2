#include "cpu/gemm_generic.h"

namespace glm5::generic {

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  if (task.args.a.dtype == Float::f32) return cpu::pack_items<PlainKernel<f32>>(task, begin, end);
  cpu::pack_items<PlainKernel<bf16>>(task, begin, end);
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  if (task.args.a.dtype == Float::f32) return cpu::multiply_items<PlainKernel<f32>>(task, begin, end, thread);
  cpu::multiply_items<PlainKernel<bf16>>(task, begin, end, thread);
}

}  // namespace glm5::generic
