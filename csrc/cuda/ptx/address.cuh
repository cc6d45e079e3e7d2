// Addresses in the shared window, of this block and of its cluster.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-mapa
#pragma once

#include "core/types.h"

namespace glm5::ptx {

__device__ __forceinline__ u32 smem_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// The same place in the shared memory of block `cta` of the cluster.
__device__ __forceinline__ u32 mapa(u32 address, u32 cta) {
  u32 mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(cta));
  return mapped;
}

}  // namespace glm5::ptx
