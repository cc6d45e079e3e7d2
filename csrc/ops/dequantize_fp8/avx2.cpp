#include "cpu/vector_avx2.h"
#include "ops/dequantize_fp8/kernel.h"

namespace glm5::avx2 {

void dequantize_fp8(const DequantizeFp8Args& args, i64 begin, i64 end, i64) {
  cpu::run_fp8_areas<dequantize::Kernel<Vector>>(args, dequantize::kTiling, begin, end);
}

}  // namespace glm5::avx2
