// fp8_gemm with AVX2: panels of 16 columns, three rows at a time.
#include "cpu/gemm_fp8_avx2.h"

namespace glm5::avx2 {

using Kernel = gemm_fp8_vectors::Kernel<Lanes, Decoder, e4m3>;

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  cpu::pack_items<Kernel>(task, begin, end);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  cpu::multiply_items<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::avx2
