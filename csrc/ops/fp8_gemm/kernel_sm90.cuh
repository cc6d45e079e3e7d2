// The fp8_gemm kernel of sm_90a (cuda/gemm_fp8.cuh), for every variant of config.h.
#pragma once

#include "cuda/gemm_fp8.cuh"
#include "ops/fp8_gemm/config.h"

namespace glm5::fp8_gemm_sm90 {

using namespace cuda::gemm_fp8;

template <int kVariantOf>
struct Shape {
  static constexpr cuda::GemmVariant kVariant = kVariants[kVariantOf];
};

// For launchers and doors, which know no header of the kernel's body.
struct KernelArgs : cuda::gemm_fp8::KernelArgs {};

template <int kVariant, bool kPerRow>
__global__ __launch_bounds__(kVariants[kVariant].threads(),
                             1) void fp8_gemm_kernel(const __grid_constant__ KernelArgs args) {
  using T = Tile<Shape<kVariant>, kPerRow>;
  static_assert(sizeof(SharedStorage<T>) == fp8_smem_bytes(kVariants[kVariant], kPerRow));
  cuda::gemm_fp8::run<T, DenseWalk<T>>(args);
}

// ---- launcher ----

template <int kVariant, bool kPerRow>
void launch_kernel(const KernelArgs& args, const Config& config, const cuda::Device& device, void* stream) {
  static_assert(!kPerRow || kVariants[kVariant].per_row);
  cuda::launch<fp8_gemm_kernel<kVariant, kPerRow>>("fp8_gemm", device,
                                                   {.blocks = dim3(config.grid),
                                                    .threads = config.threads,
                                                    .smem_bytes = config.smem_bytes,
                                                    .cluster = config.cluster},
                                                   stream, args);
}

}  // namespace glm5::fp8_gemm_sm90
