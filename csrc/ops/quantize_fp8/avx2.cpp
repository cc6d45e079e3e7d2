#include "cpu/vector_avx2.h"
#include "ops/quantize_fp8/kernel.h"

namespace glm5::avx2 {

void quantize_fp8(const QuantizeFp8Args& args, i64 begin, i64 end, i64) {
  cpu::run_fp8_areas<quantize::Kernel<Vector>>(args, quantize::kTiling, begin, end);
}

}  // namespace glm5::avx2
