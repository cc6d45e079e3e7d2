// gemm with AMX, for bf16: a step of the tree is a TDPBF16PS.
#include "cpu/gemm_plain_tiles.h"

namespace glm5::amx {

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  gemm_plain_tiles::pack(task, begin, end);
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  gemm_plain_tiles::multiply(task, begin, end, thread);
}

}  // namespace glm5::amx
