// Fences between threads and between proxies.
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//   #parallel-synchronization-and-communication-instructions-membar
#pragma once

namespace glm5::ptx {

// Makes mbarrier_init visible to the cluster and to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Between a thread's own writes to shared memory and reads of them by wgmma or the copy engine.
__device__ __forceinline__ void fence_proxy_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace glm5::ptx
