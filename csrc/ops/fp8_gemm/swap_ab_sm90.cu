// fp8_gemm on sm_90a with few rows of a: the weights are wgmma's M operand, the tile is as narrow as m (config.h).
#include "ops/fp8_gemm/kernel_sm90.cuh"
#include "ops/fp8_gemm/launch_sm90.h"

namespace glm5::fp8_gemm_sm90 {

void launch_swap_ab(const KernelArgs& args, const Config& config, const cuda::Device& device, void* stream) {
  switch (config.variant) {
    case 0:
      return launch_kernel<0, false>(args, config, device, stream);
    case 1:
      return launch_kernel<1, false>(args, config, device, stream);
    case 2:
      return launch_kernel<2, false>(args, config, device, stream);
    case 3:
      return launch_kernel<3, false>(args, config, device, stream);
    default:
      require(false, "fp8_gemm: variant ", config.variant, " does not swap its operands");
  }
}

}  // namespace glm5::fp8_gemm_sm90
