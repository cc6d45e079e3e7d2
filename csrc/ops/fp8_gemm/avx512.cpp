// fp8_gemm with AVX-512: panels of 32 columns, six rows at a time. Few rows come packed by AVX2.
#include "cpu/gemm_fp8_avx512.h"

namespace glm5::avx512 {

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  cpu::multiply_items<gemm_fp8_vectors::Kernel<Lanes, Decoder, e4m3>>(task, begin, end, thread);
}

}  // namespace glm5::avx512
