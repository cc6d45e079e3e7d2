// gemm on sm_90a with few rows of a: b is wgmma's M operand, the tile is as narrow as m (config.h).
#include "ops/gemm/kernel_sm90.cuh"
#include "ops/gemm/launch_sm90.h"

namespace glm5::gemm_sm90 {
namespace {

template <int kVariant>
void launch_variant(const KernelArgs& args, const Config& config, const Layout& layout, const cuda::Device& device,
                    void* stream) {
  if (layout.transposed_b) return launch_kernel<kVariant, Major::rows, Major::k>(args, config, device, stream);
  launch_kernel<kVariant, Major::k, Major::k>(args, config, device, stream);
}

}  // namespace

void launch_swap_ab(const KernelArgs& args, const Config& config, const Layout& layout, const cuda::Device& device,
                    void* stream) {
  switch (config.variant) {
    case 0:
      return launch_variant<0>(args, config, layout, device, stream);
    case 1:
      return launch_variant<1>(args, config, layout, device, stream);
    case 2:
      return launch_variant<2>(args, config, layout, device, stream);
    case 3:
      return launch_variant<3>(args, config, layout, device, stream);
    default:
      require(false, "gemm: variant ", config.variant, " does not swap its operands");
  }
}

}  // namespace glm5::gemm_sm90
