// The seams between the files of gemm on sm_90a with bf16 operands: one .cu per schedule. Without CUDA: bind.cpp may
// include it.
#pragma once

#include "ops/gemm/config.h"
#include "ops/gemm/gemm.h"

namespace glm5::cuda {
struct Device;
}

namespace glm5::gemm_sm90 {

struct KernelArgs;

// gemm by one given variant, for tests that compare their bits.
void run_variant(const GemmArgs& args, int variant, void* stream);

void launch_swap_ab(const KernelArgs& args, const Config& config, const Layout& layout, const cuda::Device& device,
                    void* stream);

}  // namespace glm5::gemm_sm90
