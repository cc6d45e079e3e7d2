// bar: barriers among some threads of a block, by number; 0 is that of __syncthreads.
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//   #parallel-synchronization-and-communication-instructions-barrier
#pragma once

namespace glm5::ptx {

// `threads`: how many take part, whole warps.
__device__ __forceinline__ void bar_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace glm5::ptx
