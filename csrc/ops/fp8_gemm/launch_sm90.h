// The seams between the files of fp8_gemm on sm_90a, one .cu per schedule. Without CUDA: bind.cpp may include it.
#pragma once

#include "ops/fp8_gemm/config.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::cuda {
struct Device;
}

namespace glm5::fp8_gemm_sm90 {

struct KernelArgs;

// fp8_gemm by one given variant, for tests that compare their bits.
void run_variant(const Fp8GemmArgs& args, int variant, void* stream);

void launch_swap_ab(const KernelArgs& args, const Config& config, const cuda::Device& device, void* stream);

}  // namespace glm5::fp8_gemm_sm90
