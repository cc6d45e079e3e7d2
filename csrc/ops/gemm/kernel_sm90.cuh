// The gemm kernel of sm_90a for bf16 operands (cuda/gemm_bf16.cuh), for every variant of config.h.
#pragma once

#include "cuda/gemm_bf16.cuh"
#include "ops/gemm/config.h"

namespace glm5::gemm_sm90 {

using ptx::Major;
using namespace cuda::gemm_bf16;
static_assert(kStepK == cuda::gemm_bf16::kStepK);

template <int kVariantOf>
struct Shape {
  static constexpr cuda::GemmVariant kVariant = kVariants[kVariantOf];
};

// For launchers and doors, which know no header of the kernel's body.
struct KernelArgs : cuda::gemm_bf16::KernelArgs {};

template <int kVariant, Major kLeftMajor, Major kRightMajor>
__global__ __launch_bounds__(kVariants[kVariant].threads(),
                             1) void gemm_bf16_kernel(const __grid_constant__ KernelArgs args) {
  using T = Tile<Shape<kVariant>, kLeftMajor, kRightMajor>;
  static_assert(sizeof(SharedStorage<T>) == smem_bytes(kVariants[kVariant]));
  cuda::gemm_bf16::run<T, DenseWalk<T>>(args);
}

// ---- launcher ----

template <int kVariant, Major kLeftMajor, Major kRightMajor>
void launch_kernel(const KernelArgs& args, const Config& config, const cuda::Device& device, void* stream) {
  cuda::launch<gemm_bf16_kernel<kVariant, kLeftMajor, kRightMajor>>("gemm", device,
                                                                    {.blocks = dim3(config.grid),
                                                                     .threads = config.threads,
                                                                     .smem_bytes = config.smem_bytes,
                                                                     .cluster = config.cluster},
                                                                    stream, args);
}

}  // namespace glm5::gemm_sm90
