#include "cpu/gemm_generic.h"

namespace glm5::generic {

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  cpu::pack_items<ScaledKernel<e4m3>>(task, begin, end);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  cpu::multiply_items<ScaledKernel<e4m3>>(task, begin, end, thread);
}

}  // namespace glm5::generic
