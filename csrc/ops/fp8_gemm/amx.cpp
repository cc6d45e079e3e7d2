// fp8_gemm with AMX: both operands decoded to bf16.
#include "cpu/gemm_fp8_tiles.h"

namespace glm5::amx {

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  gemm_fp8_tiles::pack(task, begin, end);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  gemm_fp8_tiles::multiply(task, begin, end, thread);
}

}  // namespace glm5::amx
