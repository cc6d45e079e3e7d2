// The body of the kernels of sm_90a for bf16 operands: gemm's, and grouped_gemm's. Names: `left` and `right` are
// wgmma's M and N operands. A Walk says which tiles a block takes, which k they sum over, and where they go.
//
//   producer    one warp fills a ring of stages with 64 k of both operands, in boxes of 64 rows by 64 k, 8 KiB each. An
//               operand with unit stride along k has a line of 128 bytes per row, one with unit stride along its rows a
//               line per k; wgmma reads either, so a transposed view costs nothing. Where the copy engine cannot serve
//               an operand (alignment), the warp copies it by hand.
//   consumers   one or two warpgroups, each with 64 left rows. All of k goes through one accumulator, ascending; the
//               next step is under way before the last one's stage is given back, so the tensor cores never wait for a
//               barrier while the ring is full.
//
// In clusters the right tile is shared: its boxes are dealt out among the blocks and each is loaded once for all. Slabs
// of 64 rows that lie wholly beyond the left operand are not multiplied. The two warpgroups only meet in the ring: one
// may write its tile while the other still multiplies, and the producer fills the ring for the next tile meanwhile.
//
// No NaN can leak in from padding: what lies outside an operand arrives as zeros, and rows and columns beyond out are
// never written.
#pragma once

#include "cuda/launch.h"
#include "cuda/pipeline.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async_bulk_tensor.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile_scheduler.cuh"
#include "cuda/tile_store.cuh"
#include "cuda/gemm_config.h"

namespace glm5::cuda::gemm_bf16 {

using ptx::Major;

constexpr int kStepK = 64;
constexpr int kBoxRows = 64;  // of one copy; also the rows of a slab

// An operand in memory, [batch, rows, k].
struct Operand {
  const bf16* data;
  i64 batch_stride, row_stride, k_stride;  // in elements
  int rows;
  bool by_hand;
};

// One call, by value.
struct KernelArgs {
  CUtensorMap left_map, right_map;  // unused where the operand is copied by hand
  Operand left, right;
  cuda::TileOut out;     // of the first batch
  i64 out_batch_stride;  // in elements
  cuda::TileGrid grid;   // of one batch; rows counted in clusters
  int tiles;             // of all batches
  int k;
};

// Shape::kVariant is a GemmVariant.
template <class Shape, Major kLeftMajorOf, Major kRightMajorOf>
struct Tile {
  static constexpr GemmVariant kShape = Shape::kVariant;
  static constexpr Major kLeftMajor = kLeftMajorOf, kRightMajor = kRightMajorOf;
  static constexpr bool kSwapped = kShape.schedule == Schedule::swap_ab;
  static constexpr int kLeft = kShape.left, kRight = kShape.right;
  static constexpr int kCluster = kShape.cluster, kStages = kShape.stages;
  static constexpr int kWarpgroups = kShape.consumer_warpgroups(), kConsumerWarps = 4 * kWarpgroups;
  static constexpr int kConsumerThreads = kShape.consumer_threads();
  static_assert(kLeft == kBoxRows * kWarpgroups && (kRight % kBoxRows == 0 || kRightMajor == Major::k));
  static_assert(kStagingBytes == cuda::kTileStoreBytes);
};

template <class T>
struct SharedStorage {
  alignas(1024) u8 left[T::kStages][T::kLeft][kStepBytes];
  alignas(1024) u8 right[T::kStages][T::kRight][kStepBytes];
  alignas(1024) u8 staging[T::kConsumerWarps][kStagingBytes];
  cuda::Pipeline<T::kStages> ring;
  u64 end_loaded;  // where the sum over k ends within a stage (Walk::kRagged): its copies have come
};

// The tiles of one block, in turn, where all batches have one size.
template <class T>
struct DenseWalk {
  using Args = KernelArgs;
  static constexpr bool kRagged = false;
  int tile = blockIdx.x / T::kCluster;
  int batch, left_row, right_row;

  __device__ __forceinline__ bool find(const KernelArgs& args, u32 rank) {
    if (tile >= args.tiles) return false;
    batch = tile / args.grid.count();
    const cuda::TilePlace place = args.grid.at(tile - batch * args.grid.count());
    left_row = (place.row * T::kCluster + static_cast<int>(rank)) * T::kLeft;
    right_row = place.column * T::kRight;
    return true;
  }
  __device__ __forceinline__ void advance() { tile += gridDim.x / T::kCluster; }

  __device__ __forceinline__ int left_end(const KernelArgs& args) const {
    return T::kSwapped ? args.out.n : args.out.m;
  }
  __device__ __forceinline__ int first_k(const KernelArgs&) const { return 0; }
  __device__ __forceinline__ int last_k(const KernelArgs& args) const { return args.k; }
  __device__ __forceinline__ TileOut out(const KernelArgs& args) const {
    TileOut out = args.out;
    out.data = static_cast<u8*>(out.data) + batch * args.out_batch_stride * (out.is_f32 ? 4 : 2);
    return out;
  }
};

// ---- producer ----

// This block's share of the boxes of kRows rows from `row` on, by one thread.
template <int kRows, Major kMajor, int kBlocks>
__device__ __forceinline__ void load_boxes(u8 (*to)[kStepBytes], const CUtensorMap* map, int row, int k, int batch,
                                           u64* full, u32 rank) {
#pragma unroll
  for (int first = 0; first < kRows; first += kBoxRows) {
    const int x = kMajor == Major::k ? k : row + first, y = kMajor == Major::k ? row + first : k;
    if constexpr (kBlocks == 1) {
      ptx::cp_async_bulk_tensor_3d(to[first], map, x, y, batch, full);
    } else {
      if (first / kBoxRows % kBlocks == rank) {
        ptx::cp_async_bulk_tensor_3d_multicast(to[first], map, x, y, batch, full, (1 << kBlocks) - 1);
      }
    }
  }
}

// The same lines as the copy engine writes for unit stride along k, from any strides, by the whole warp: lanes take
// pieces of 8 k. Slow, but it serves tensors that have no aligned rows.
template <int kRows>
__device__ __forceinline__ void copy_by_hand(u8 (*to)[kStepBytes], const Operand& operand, int row, int k, int k_end,
                                             int batch) {
  const int lane = threadIdx.x % 32, piece = lane % 8;
  for (int r = lane / 8; r < kRows; r += 4) {
    const bf16* from = operand.data + batch * operand.batch_stride + (row + r) * operand.row_stride +
                       (k + 8 * piece) * operand.k_stride;
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const bool exists = row + r < operand.rows && k + 8 * piece + i < k_end;
      const u32 value = exists ? from[i * operand.k_stride].bits : 0;
      words[i / 2] = i % 2 == 0 ? value : words[i / 2] | value << 16;
    }
    *reinterpret_cast<uint4*>(to[r] + (piece ^ r % 8) * 16) = {words[0], words[1], words[2], words[3]};
  }
}

// The copies of one stage, by one thread; `arrived` counts their bytes.
template <class T, class Walk>
__device__ __forceinline__ void copy_stage(const typename Walk::Args& args, SharedStorage<T>& smem, int stage,
                                           const Walk& walk, int k, u32 rank, bool left, bool right, u64* arrived) {
  // An operand that is the same for all batches has one in its map.
  if (left) {
    load_boxes<T::kLeft, T::kLeftMajor, 1>(smem.left[stage], &args.left_map, walk.left_row, k,
                                           args.left.batch_stride == 0 ? 0 : walk.batch, arrived, rank);
  }
  if (right) {
    load_boxes<T::kRight, T::kRightMajor, T::kCluster>(smem.right[stage], &args.right_map, walk.right_row, k,
                                                       args.right.batch_stride == 0 ? 0 : walk.batch, arrived, rank);
  }
}

// Zeros for the k of a stage from `valid` on, in boxes whose lines are a k each, by the whole warp.
template <int kRows>
__device__ __forceinline__ void clear_lines(u8 (*to)[kStepBytes], int valid) {
  const int pieces = (kStepK - valid) * (kStepBytes / 16);
#pragma unroll
  for (int box = 0; box < kRows; box += kBoxRows) {
    for (int i = threadIdx.x % 32; i < pieces; i += 32) *reinterpret_cast<uint4*>(to[box + valid] + 16 * i) = {};
  }
}

// The last stage of a sum that ends within it: what follows in memory belongs to another sum, and may be NaN.
template <class T, class Walk>
__device__ __forceinline__ void load_end(const typename Walk::Args& args, SharedStorage<T>& smem, int stage,
                                         const Walk& walk, int k, u32& end_parity) {
  static_assert(T::kCluster == 1 && T::kLeftMajor == Major::rows && T::kRightMajor == Major::rows);
  if (threadIdx.x % 32 == 0) {
    ptx::mbarrier_arrive_expect_tx(&smem.end_loaded, (T::kLeft + T::kRight) * kStepBytes);
    copy_stage<T, Walk>(args, smem, stage, walk, k, 0, true, true, &smem.end_loaded);
  }
  while (!ptx::mbarrier_try_wait_parity(&smem.end_loaded, end_parity)) {
  }
  end_parity ^= 1;
  clear_lines<T::kLeft>(smem.left[stage], walk.last_k(args) - k);
  clear_lines<T::kRight>(smem.right[stage], walk.last_k(args) - k);
  ptx::fence_proxy_async_shared();  // each lane's writes, before wgmma reads them
  __syncwarp();
  if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(&smem.ring.full[stage]);
}

// The whole warp calls; the stage is empty.
template <class T, class Walk>
__device__ __forceinline__ void load_stage(const typename Walk::Args& args, SharedStorage<T>& smem,
                                           const cuda::RingPosition<T::kStages>& at, const Walk& walk, int k,
                                           u32 rank) {
  const bool left_by_hand = T::kCluster == 1 && T::kLeftMajor == Major::k && args.left.by_hand;
  const bool right_by_hand = T::kCluster == 1 && T::kRightMajor == Major::k && args.right.by_hand;
  if (left_by_hand || right_by_hand) {
    u8(*left)[kStepBytes] = smem.left[at.stage];
    u8(*right)[kStepBytes] = smem.right[at.stage];
    if (left_by_hand) copy_by_hand<T::kLeft>(left, args.left, walk.left_row, k, args.k, walk.batch);
    if (right_by_hand) copy_by_hand<T::kRight>(right, args.right, walk.right_row, k, args.k, walk.batch);
    ptx::fence_proxy_async_shared();  // each lane's writes, before wgmma reads them
    __syncwarp();
  }
  if (threadIdx.x % 32 != 0) return;
  smem.ring.arrive_full(at, (left_by_hand ? 0 : T::kLeft * kStepBytes) + (right_by_hand ? 0 : T::kRight * kStepBytes));
  copy_stage<T, Walk>(args, smem, at.stage, walk, k, rank, !left_by_hand, !right_by_hand, &smem.ring.full[at.stage]);
}

// By one whole warp.
template <class T, class Walk>
__device__ __forceinline__ void produce(const typename Walk::Args& args, SharedStorage<T>& smem, u32 rank) {
  cuda::RingPosition<T::kStages> at;
  u32 end_parity = 0;
  for (Walk walk; walk.find(args, rank); walk.advance()) {
    for (int k = walk.first_k(args); k < walk.last_k(args); k += kStepK, at.advance()) {
      smem.ring.wait_empty(at);
      if constexpr (Walk::kRagged) {
        if (walk.last_k(args) - k < kStepK) {
          load_end<T, Walk>(args, smem, at.stage, walk, k, end_parity);
          continue;
        }
      }
      load_stage<T, Walk>(args, smem, at, walk, k, rank);
      __syncwarp();
    }
  }
}

// ---- consumers ----

// total (+)= left[64 rows] right^T over the 64 k of one stage: four wgmma, under way when this returns.
template <class T>
__device__ __forceinline__ void multiply(f32 (&total)[T::kRight / 2], const SharedStorage<T>& smem, int stage, int row,
                                         bool first) {
  const u64 left = ptx::wgmma_descriptor_of<T::kLeftMajor>(smem.left[stage][row]);
  const u64 right = ptx::wgmma_descriptor_of<T::kRightMajor>(smem.right[stage]);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kStepK / 16; ++step) {
    ptx::wgmma_m64k16_f32_bf16_bf16<T::kLeftMajor, T::kRightMajor>(
        total, left + step * ptx::kDescriptorStepK16<T::kLeftMajor>,
        right + step * ptx::kDescriptorStepK16<T::kRightMajor>, !(first && step == 0));
  }
  ptx::wgmma_commit_group();
}

template <class T>
__device__ __forceinline__ void multiply_all(f32 (&total)[T::kRight / 2], SharedStorage<T>& smem,
                                             cuda::RingPosition<T::kStages>& at, int steps, int row) {
  const u32 lane = threadIdx.x % 32;
  ptx::pin(total);
  smem.ring.wait_full(at);
  multiply<T>(total, smem, at.stage, row, true);
  for (int step = 1; step < steps; ++step) {
    const auto before = at;
    at.advance();
    smem.ring.wait_full(at);
    multiply<T>(total, smem, at.stage, row, false);
    ptx::wgmma_wait_group<1>();
    smem.ring.template release<T::kCluster>(before, lane);
  }
  ptx::wgmma_wait_group<0>();
  ptx::pin(total);
  smem.ring.template release<T::kCluster>(at, lane);
  at.advance();
}

// A warpgroup whose slab lies beyond the left operand keeps the ring going.
template <class T>
__device__ __forceinline__ void pass_on(SharedStorage<T>& smem, cuda::RingPosition<T::kStages>& at, int steps) {
  for (int step = 0; step < steps; ++step, at.advance()) {
    smem.ring.wait_full(at);
    smem.ring.template release<T::kCluster>(at, threadIdx.x % 32);
  }
}

template <class T, class Walk>
__device__ __forceinline__ void consume(const typename Walk::Args& args, SharedStorage<T>& smem, u32 rank) {
  const int row = threadIdx.x / 128 * kBoxRows, warp = threadIdx.x / 32;
  cuda::RingPosition<T::kStages> at;
  for (Walk walk; walk.find(args, rank); walk.advance()) {
    const int steps = (walk.last_k(args) - walk.first_k(args) + kStepK - 1) / kStepK;
    if (walk.left_row + row >= walk.left_end(args)) {
      pass_on<T>(smem, at, steps);
      continue;
    }
    f32 total[T::kRight / 2];  // the first wgmma writes it without reading
    if (Walk::kRagged && steps == 0) {
#pragma unroll
      for (f32& one : total) one = 0.0f;
    } else {
      multiply_all<T>(total, smem, at, steps, row);
    }
    cuda::store_tile<T::kSwapped, T::kRight>(walk.out(args), total, smem.staging[warp],
                                             walk.left_row + row + warp % 4 * 16, walk.right_row);
  }
}

// ---- kernel ----

template <class T, class Walk>
__device__ __forceinline__ void run(const typename Walk::Args& args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<SharedStorage<T>*>(smem_base);
  const u32 rank = T::kCluster == 1 ? 0 : ptx::cluster_ctarank();

  if (threadIdx.x == 0) {
    smem.ring.init(1, T::kConsumerWarps * T::kCluster);
    if constexpr (Walk::kRagged) ptx::mbarrier_init(&smem.end_loaded, 1);
    ptx::fence_mbarrier_init();
  }
  cuda::sync_cluster<T::kCluster>();

  // 2 x 128 x 216 + 128 x 72 registers are what 384 threads of 168 were given: room for copying by hand.
  if (threadIdx.x >= T::kConsumerThreads) {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_dec<72>();
    if (threadIdx.x < T::kConsumerThreads + 32) produce<T, Walk>(args, smem, rank);
  } else {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_inc<216>();
    consume<T, Walk>(args, smem, rank);
  }

  // A block must stay while its peer may still write to it or arrive on its barriers.
  if constexpr (T::kCluster > 1) cuda::sync_cluster<T::kCluster>();
}

}  // namespace glm5::cuda::gemm_bf16
