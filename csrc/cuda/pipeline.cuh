// Pipeline<kStages>: a ring of stages in shared memory between a producer and consumers.
//
// A stage is full once the producer has arrived and all bytes it announced have come; it is empty once every consumer
// has arrived. Both sides walk the ring with a RingPosition that lives as long as the kernel: it goes on from one tile
// to the next, so that parities never depend on the number of steps of a tile.
#pragma once

#include "core/types.h"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"

namespace glm5::cuda {

// All threads of a cluster of kBlocks blocks: before they arrive on each other's barriers, and before one leaves to
// whose shared memory another may still write.
template <int kBlocks>
__device__ __forceinline__ void sync_cluster() {
  if constexpr (kBlocks == 1) {
    __syncthreads();
  } else {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
}

template <int kStages>
struct RingPosition {
  int stage = 0;
  u32 parity = 0;  // of the round: 0 in the first, 1 in the second, ...

  __host__ __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

template <int kStages>
struct Pipeline {
  using Position = RingPosition<kStages>;

  u64 full[kStages];
  u64 empty[kStages];

  // By one thread, before a barrier of all threads (of the cluster, where blocks arrive on each other).
  __device__ __forceinline__ void init(u32 producers, u32 consumers) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(&full[stage], producers);
      ptx::mbarrier_init(&empty[stage], consumers);
    }
  }

  // The phase before the first counts as completed, so in the first round the producer passes at once.
  __device__ __forceinline__ void wait_empty(const Position& at) { wait(&empty[at.stage], at.parity ^ 1); }
  __device__ __forceinline__ void wait_full(const Position& at) { wait(&full[at.stage], at.parity); }

  __device__ __forceinline__ void arrive_full(const Position& at, u32 bytes) {
    ptx::mbarrier_arrive_expect_tx(&full[at.stage], bytes);
  }

  // One arrival per consumer warp, on the rings of all kBlocks blocks that fill this stage. Call with the whole warp,
  // after its last read of the stage.
  template <int kBlocks>
  __device__ __forceinline__ void release(const Position& at, u32 lane) {
    __syncwarp();
    if constexpr (kBlocks == 1) {
      if (lane == 0) ptx::mbarrier_arrive(&empty[at.stage]);
    } else {
      if (lane < kBlocks) ptx::mbarrier_arrive_cluster(&empty[at.stage], lane);
    }
  }

 private:
  __device__ __forceinline__ static void wait(u64* barrier, u32 parity) {
    while (!ptx::mbarrier_try_wait_parity(barrier, parity)) {
    }
  }
};

}  // namespace glm5::cuda
