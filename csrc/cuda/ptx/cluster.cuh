// The cluster: rank and barrier. The barrier's forms without .aligned, so that a warp may come in parts.
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//   #parallel-synchronization-and-communication-instructions-barrier-cluster
#pragma once

#include "core/types.h"

namespace glm5::ptx {

__device__ __forceinline__ u32 cluster_ctarank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ __forceinline__ void barrier_cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ __forceinline__ void barrier_cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

}  // namespace glm5::ptx
