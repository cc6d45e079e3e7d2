// gemm with AVX2: panels of 16 columns; six rows at a time in f32, three in bf16.
#include "cpu/gemm_plain_vectors.h"

namespace glm5::avx2 {

void gemm_pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64) {
  gemm_plain_vectors::pack<Lanes>(task, begin, end);
}

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  gemm_plain_vectors::multiply<Lanes>(task, begin, end, thread);
}

}  // namespace glm5::avx2
