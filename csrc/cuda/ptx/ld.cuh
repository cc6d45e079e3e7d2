// Loads whose place needs saying.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
#pragma once

#include "core/types.h"

namespace glm5::ptx {

// From the shared memory of any block of the cluster; the address is mapa's.
__device__ __forceinline__ u32 ld_shared_cluster_u32(u32 address) {
  u32 value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

}  // namespace glm5::ptx
