// mbarrier: arrival and transaction counts in shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//   #parallel-synchronization-and-communication-instructions-mbarrier
#pragma once

#include "core/types.h"
#include "cuda/ptx/address.cuh"

namespace glm5::ptx {

__device__ __forceinline__ void mbarrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
}

// Arrives on the barrier at the same place in block `cta` of the cluster. It orders this thread's reads; for writes
// that the other block shall see it would need .release.cluster, which costs a memory barrier each time.
__device__ __forceinline__ void mbarrier_arrive_cluster(u64* barrier, u32 cta) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapa(smem_address(barrier), cta)) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)), "r"(bytes)
               : "memory");
}

// True once the phase of this parity has completed.
__device__ __forceinline__ bool mbarrier_try_wait_parity(u64* barrier, u32 parity) {
  u32 done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(smem_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

}  // namespace glm5::ptx
