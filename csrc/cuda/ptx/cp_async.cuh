// cp.async: copies of 16 bytes that a thread starts; waited for in groups, or by a barrier.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async
#pragma once

#include "cuda/ptx/address.cuh"

namespace glm5::ptx {

// 16 bytes, past the L1 cache; zeros where `exists` is false, and then nothing is read.
__device__ __forceinline__ void cp_async_cg_16(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(to)), "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}

// Arrives once all copies have come that this thread started so far; one of the arrivals that the barrier expects.
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(u64* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(barrier)) : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace glm5::ptx
