// gemm with AVX-512: panels of 32 columns; twelve rows at a time in f32, six in bf16. Few rows come packed by AVX2.
#include "cpu/avx512.h"
#include "cpu/gemm_plain_vectors.h"

namespace glm5::avx512 {

void gemm_multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  gemm_plain_vectors::multiply<Lanes>(task, begin, end, thread);
}

}  // namespace glm5::avx512
