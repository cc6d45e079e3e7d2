// cp.async.bulk.tensor: tiles from global to shared memory by the copy engine (TMA). The fastest dimension comes first.
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//   #data-movement-and-conversion-instructions-cp-async-bulk-tensor
#pragma once

#include <cuda.h>

#include "core/types.h"
#include "cuda/ptx/address.cuh"

namespace glm5::ptx {

__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Global to shared; the barrier of this block counts the bytes of the whole box, zeros beyond the tensor included.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(void* destination, const CUtensorMap* map, i32 x, i32 y,
                                                        u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(smem_address(destination)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(barrier))
      : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d(void* destination, const CUtensorMap* map, i32 x, i32 y, i32 z,
                                                        u64* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(smem_address(destination)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(smem_address(barrier))
      : "memory");
}

// The same box to the same place in every block of the mask; each block's own barrier counts it.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(void* destination, const CUtensorMap* map, i32 x,
                                                                  i32 y, u64* barrier, u16 cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(smem_address(destination)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(barrier)), "h"(cta_mask)
      : "memory");
}

__device__ __forceinline__ void cp_async_bulk_tensor_3d_multicast(void* destination, const CUtensorMap* map, i32 x,
                                                                  i32 y, i32 z, u64* barrier, u16 cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(smem_address(destination)),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(smem_address(barrier)), "h"(cta_mask)
      : "memory");
}

}  // namespace glm5::ptx
