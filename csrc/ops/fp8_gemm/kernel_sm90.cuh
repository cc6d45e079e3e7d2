// The fp8_gemm kernel of sm_90a, for every variant of config.h. Names: `left` and `right` are wgmma's M and N operands.
//
//   producer    one warp fills a ring of stages: 128 of k of both operands (128-byte rows, 128-byte swizzle) and their scales.
//               Scales that belong to single rows come by the copy engine; block scales, whose strides are free, are read
//               32 groups at a time, one per lane, a batch ahead.
//   consumers   one or two warpgroups, each with 64 left rows (two slabs of 64 where left = 256). A group's product starts
//               from zero in `part` and is promoted into `total` by one fused multiply-add per element.
//
// The tensor cores never wait for promotion: with one slab a warpgroup has two parts and multiplies the next group while it
// promotes this one; with two slabs there is one part, and the other warpgroup multiplies meanwhile. In clusters the left
// tile is shared: each block loads half of it for both. Slabs that lie wholly beyond the left operand are not multiplied.
//
// No NaN can leak in from padding: what lies outside an operand or its scales arrives as zeros, and rows and columns beyond
// out are never written.
#pragma once

#include "core/tensor.h"
#include "cuda/pipeline.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async_bulk_tensor.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/wgmma.cuh"
#include "cuda/tile_scheduler.cuh"
#include "ops/fp8_gemm/config.h"
#include "ops/fp8_gemm/epilogue_sm90.cuh"

namespace glm5::fp8_gemm_sm90 {

// One call, by value.
struct alignas(64) KernelArgs {
  CUtensorMap left, right;                // e4m3 [rows, k]
  CUtensorMap left_scales, right_scales;  // f32 [groups, rows]; the side with block scales leaves its own unused
  Tensor<const f32, 2> block_scales;      // [blocks of 128 rows of b, groups]
  Output output;
  cuda::TileGrid grid;  // columns counted in clusters
  int groups;           // of k
};

template <int kVariant, bool kPerRow>
struct Tile {
  static constexpr Variant kShape = kVariants[kVariant];
  static constexpr bool kSwapped = kShape.schedule == Schedule::swap_ab;
  static constexpr int kLeft = kShape.left, kRight = kShape.right;
  static constexpr int kCluster = kShape.cluster, kStages = kShape.stages;
  static constexpr int kWarpgroups = kShape.consumer_warpgroups(), kConsumerWarps = 4 * kWarpgroups;
  static constexpr int kConsumerThreads = kShape.consumer_threads(), kThreads = kShape.threads();
  static constexpr int kSlabs = kLeft / 64 / kWarpgroups;  // of 64 rows, per consumer warpgroup
  // A second part where total and two parts leave 40 of 240 registers: half of `right` each.
  static constexpr bool kTwoParts = kSlabs == 1 && kRight <= 128;

  // Which operands have a scale per row. The other (b, unless kPerRow) has one per block of 128 rows.
  static constexpr bool kLeftVector = !kSwapped || kPerRow, kRightVector = kSwapped || kPerRow;
  // Tiles start at multiples of their width, so a run of kRun rows of `right` never crosses a block.
  static constexpr int kRun = kRight % 128 == 0 ? 128 : kRight % 64 == 0 ? 64 : 16;
  static constexpr int kRuns = (kRight + kRun - 1) / kRun;
  static constexpr int kRightBlocks = (128 - kRun + kRight + 127) / 128;  // that one tile can touch
  static_assert(kRight % 16 == 0 && kRightBlocks <= 2);

  static constexpr u32 kBytesPerStage = (kLeft + kRight) * kStepBytes + (kLeftVector ? 4 * kLeft : 0) +
                                        (kRightVector ? 4 * kRight : 0);  // that the copy engine brings
};

template <class T>
struct SharedStorage {
  alignas(1024) u8 left[T::kStages][T::kLeft][kStepBytes];
  alignas(1024) u8 right[T::kStages][T::kRight][kStepBytes];
  alignas(1024) u8 staging[T::kConsumerWarps][kStagingBytes];
  alignas(128) f32 left_scales[T::kStages][scale_slot_bytes(T::kLeft, T::kLeftVector) / 4];
  alignas(128) f32 right_scales[T::kStages][scale_slot_bytes(T::kRight, T::kRightVector) / 4];
  cuda::Pipeline<T::kStages> ring;
};

// ---- producer ----

// The block scales of one tile, one group at a time. Lane i holds group 32 j + i of batch j; batch j + 1 is under way.
template <int kBlocks>
struct BlockScales {
  const f32* first[kBlocks];  // group 0 of each block
  i64 stride;
  int groups, lane;
  f32 now[kBlocks], next[kBlocks];

  __device__ BlockScales(const KernelArgs& args, int first_row, int lane)
      : stride(args.block_scales.stride[1]), groups(args.groups), lane(lane) {
    const int last = static_cast<int>(args.block_scales.shape[0]) - 1;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int block = first_row / 128 + i;
      first[i] = args.block_scales.at(block < last ? block : last, 0);  // beyond the last, the operand is zero
    }
    fetch(0);
  }

  __device__ __forceinline__ void fetch(int group) {
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) next[i] = group + lane < groups ? __ldg(first[i] + (group + lane) * stride) : 0.0f;
  }

  // Groups come in ascending order. The whole warp calls.
  __device__ __forceinline__ void at(int group, f32 (&scales)[kBlocks]) {
    if (group % 32 == 0) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) now[i] = next[i];
      fetch(group + 32);
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) scales[i] = __shfl_sync(0xffffffff, now[i], group % 32);
  }
};

template <class T>
__device__ __forceinline__ void load_stage(const KernelArgs& args, SharedStorage<T>& smem,
                                           const cuda::RingPosition<T::kStages>& at, int group, int left_row,
                                           int right_row, u32 rank) {
  const int stage = at.stage, k = group * kStepBytes;
  u64* full = &smem.ring.full[stage];
  smem.ring.arrive_full(at, T::kBytesPerStage);
  if constexpr (T::kCluster == 1) {
    ptx::cp_async_bulk_tensor_2d(smem.left[stage], &args.left, k, left_row, full);
  } else {
    constexpr int kShare = T::kLeft / T::kCluster;
    ptx::cp_async_bulk_tensor_2d_multicast(smem.left[stage][rank * kShare], &args.left, k, left_row + rank * kShare, full,
                                           (1 << T::kCluster) - 1);
  }
  ptx::cp_async_bulk_tensor_2d(smem.right[stage], &args.right, k, right_row, full);
  if constexpr (T::kLeftVector) {
    ptx::cp_async_bulk_tensor_2d(smem.left_scales[stage], &args.left_scales, left_row, group, full);
  }
  if constexpr (T::kRightVector) {
    ptx::cp_async_bulk_tensor_2d(smem.right_scales[stage], &args.right_scales, right_row, group, full);
  }
}

// By one whole warp.
template <class T>
__device__ void produce(const KernelArgs& args, SharedStorage<T>& smem, u32 rank) {
  constexpr bool kHasBlocks = !(T::kLeftVector && T::kRightVector);
  constexpr int kBlocks = T::kSwapped ? 1 : T::kRightBlocks;
  const int lane = threadIdx.x % 32;
  cuda::RingPosition<T::kStages> at;
  for (int tile = blockIdx.x / T::kCluster; tile < args.grid.count(); tile += gridDim.x / T::kCluster) {
    const cuda::TilePlace place = args.grid.at(tile);
    const int left_row = place.row * T::kLeft, right_row = (place.column * T::kCluster + rank) * T::kRight;
    BlockScales<kHasBlocks ? kBlocks : 0> block_scales(args, T::kSwapped ? left_row : right_row, lane);
    for (int group = 0; group < args.groups; ++group, at.advance()) {
      smem.ring.wait_empty(at);
      if constexpr (kHasBlocks) {
        f32 scales[kBlocks];
        block_scales.at(group, scales);
        f32* slot = T::kSwapped ? smem.left_scales[at.stage] : smem.right_scales[at.stage];
        if (lane < kBlocks) slot[lane] = kBlocks == 1 || lane == 0 ? scales[0] : scales[kBlocks - 1];
        __syncwarp();  // lane 0's arrival below publishes the slot
      }
      if (lane == 0) load_stage<T>(args, smem, at, group, left_row, right_row, rank);
      __syncwarp();
    }
  }
}

// ---- consumers ----

// One thread's place in the accumulator of a slab: rows row and row + 8, columns 8 j + column and + 1.
struct Lane {
  int warpgroup, warp, row, column, lane;  // warp within the warpgroup; row within the slab

  __device__ Lane()
      : warpgroup(threadIdx.x / 128),
        warp(threadIdx.x / 32 % 4),
        row(16 * warp + threadIdx.x % 32 / 4),
        column(2 * (threadIdx.x % 4)),
        lane(threadIdx.x % 32) {}
};

// The first row of a warpgroup's slab. Warpgroups take turns, so that both work on a tile that is half full.
template <class T>
__device__ __forceinline__ int slab_row(const Lane& me, int slab) {
  return 64 * (slab * T::kWarpgroups + me.warpgroup);
}

// part = left[64 rows] right^T over the 128 k of one stage: four wgmma, the first from zero.
template <class T>
__device__ __forceinline__ void multiply(f32 (&part)[T::kRight / 2], const SharedStorage<T>& smem, int stage, int row) {
  const u64 left = ptx::wgmma_descriptor(smem.left[stage][row]);
  const u64 right = ptx::wgmma_descriptor(smem.right[stage]);
  ptx::pin(part);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kStepBytes / 32; ++step) {
    ptx::wgmma_m64k32_f32_e4m3_e4m3(part, left + step * ptx::kDescriptorStepK32, right + step * ptx::kDescriptorStepK32,
                                    step != 0);
  }
  ptx::wgmma_commit_group();
  ptx::pin(part);
}

// What a thread needs of the scales of one stage and slab.
template <class T>
struct Scales {
  f32 row[2];                      // left: of the two rows, or the block's in both
  f32 block[T::kRightBlocks];      // right, where it has blocks
  const f32* columns = nullptr;    // right, where it has a scale per row: still in shared memory

  __device__ __forceinline__ Scales(const SharedStorage<T>& smem, int stage, int slab, const Lane& me) {
    const f32* left = smem.left_scales[stage];
    row[0] = T::kLeftVector ? left[slab + me.row] : left[0];
    row[1] = T::kLeftVector ? left[slab + me.row + 8] : row[0];
    if constexpr (T::kRightVector) {
      columns = smem.right_scales[stage] + me.column;
    } else {
#pragma unroll
      for (int i = 0; i < T::kRightBlocks; ++i) block[i] = smem.right_scales[stage][i];
    }
  }
};

// total = fma(left scale * right scale, part, total), in exactly this order in every variant. block_edge: the first
// column of the tile that belongs to its second block.
template <class T>
__device__ __forceinline__ void promote(f32 (&total)[T::kRight / 2], const f32 (&part)[T::kRight / 2],
                                        const Scales<T>& scales, int block_edge) {
  f32 product[T::kRightBlocks][2];
  if constexpr (!T::kRightVector) {
#pragma unroll
    for (int i = 0; i < T::kRightBlocks; ++i) {
      product[i][0] = __fmul_rn(scales.row[0], scales.block[i]);
      product[i][1] = __fmul_rn(scales.row[1], scales.block[i]);
    }
  }
#pragma unroll
  for (int j = 0; j < T::kRight / 8; ++j) {
    f32 scale[4];
    if constexpr (T::kRightVector) {
      const float2 column = *reinterpret_cast<const float2*>(scales.columns + 8 * j);
      scale[0] = __fmul_rn(scales.row[0], column.x);
      scale[1] = __fmul_rn(scales.row[0], column.y);
      scale[2] = T::kLeftVector ? __fmul_rn(scales.row[1], column.x) : scale[0];
      scale[3] = T::kLeftVector ? __fmul_rn(scales.row[1], column.y) : scale[1];
    } else {
      const bool second = T::kRightBlocks == 2 && j * 8 / T::kRun * T::kRun >= block_edge;
      scale[0] = scale[1] = second ? product[T::kRightBlocks - 1][0] : product[0][0];
      scale[2] = scale[3] = second ? product[T::kRightBlocks - 1][1] : product[0][1];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[4 * j + i] = __fmaf_rn(scale[i], part[4 * j + i], total[4 * j + i]);
  }
}

// One group of a warpgroup with two parts: starts the next group in `ahead`, then promotes this one from `part`.
template <class T>
__device__ __forceinline__ void step_ahead(f32 (&total)[T::kRight / 2], f32 (&part)[T::kRight / 2],
                                           f32 (&ahead)[T::kRight / 2], SharedStorage<T>& smem,
                                           cuda::RingPosition<T::kStages>& at, bool last, int block_edge, const Lane& me) {
  const auto here = at;
  const int row = slab_row<T>(me, 0);
  const Scales<T> scales(smem, here.stage, row, me);
  at.advance();
  if (last) {
    ptx::wgmma_wait_group<0>();
  } else {
    smem.ring.wait_full(at);
    multiply<T>(ahead, smem, at.stage, row);
    ptx::wgmma_wait_group<1>();
  }
  ptx::pin(part);
  if constexpr (!T::kRightVector) smem.ring.template release<T::kCluster>(here, me.lane);
  promote<T>(total, part, scales, block_edge);
  if constexpr (T::kRightVector) smem.ring.template release<T::kCluster>(here, me.lane);
}

template <class T>
__device__ __forceinline__ void multiply_ahead(f32 (&total)[1][T::kRight / 2], SharedStorage<T>& smem,
                                               cuda::RingPosition<T::kStages>& at, int groups, int block_edge,
                                               const Lane& me) {
  f32 even[T::kRight / 2], odd[T::kRight / 2];
  smem.ring.wait_full(at);
  multiply<T>(even, smem, at.stage, slab_row<T>(me, 0));
  for (int group = 0; group < groups; group += 2) {
    step_ahead<T>(total[0], even, odd, smem, at, group + 1 == groups, block_edge, me);
    if (group + 1 == groups) break;
    step_ahead<T>(total[0], odd, even, smem, at, group + 2 == groups, block_edge, me);
  }
}

template <class T>
__device__ __forceinline__ void multiply_in_turn(f32 (&total)[T::kSlabs][T::kRight / 2], SharedStorage<T>& smem,
                                                 cuda::RingPosition<T::kStages>& at, int groups, int left_rows,
                                                 int block_edge, const Lane& me) {
  f32 part[T::kRight / 2];
  for (int group = 0; group < groups; ++group, at.advance()) {
    smem.ring.wait_full(at);
#pragma unroll
    for (int slab = 0; slab < T::kSlabs; ++slab) {
      const int row = slab_row<T>(me, slab);
      const bool last = slab + 1 == T::kSlabs;
      if (row < left_rows) {
        const Scales<T> scales(smem, at.stage, row, me);
        multiply<T>(part, smem, at.stage, row);
        ptx::wgmma_wait_group<0>();
        ptx::pin(part);
        if (last && !T::kRightVector) smem.ring.template release<T::kCluster>(at, me.lane);
        promote<T>(total[slab], part, scales, block_edge);
        if (last && T::kRightVector) smem.ring.template release<T::kCluster>(at, me.lane);
      } else if (last) {
        smem.ring.template release<T::kCluster>(at, me.lane);
      }
    }
  }
}

template <class T>
__device__ void consume(const KernelArgs& args, SharedStorage<T>& smem, u32 rank) {
  const Lane me;
  const Output& output = args.output;
  cuda::RingPosition<T::kStages> at;
  for (int tile = blockIdx.x / T::kCluster; tile < args.grid.count(); tile += gridDim.x / T::kCluster) {
    const cuda::TilePlace place = args.grid.at(tile);
    const int left_row = place.row * T::kLeft, right_row = (place.column * T::kCluster + rank) * T::kRight;
    const int block_edge = 128 - right_row % 128;
    const int left_rows = (T::kSwapped ? output.n : output.m) - left_row;
    f32 total[T::kSlabs][T::kRight / 2] = {};
    if constexpr (T::kTwoParts) {
      multiply_ahead<T>(total, smem, at, args.groups, block_edge, me);
    } else {
      multiply_in_turn<T>(total, smem, at, args.groups, left_rows, block_edge, me);
    }
#pragma unroll
    for (int slab = 0; slab < T::kSlabs; ++slab) {
      const int row = slab_row<T>(me, slab) + 16 * me.warp;
      if (row < left_rows) {
        store_rows<T::kSwapped, T::kRight>(output, total[slab], smem.staging[4 * me.warpgroup + me.warp], left_row + row,
                                           right_row);
      }
    }
  }
}

// ---- kernel ----

template <int kVariant, bool kPerRow>
__global__ __launch_bounds__(kVariants[kVariant].threads(), 1) void fp8_gemm_kernel(
    const __grid_constant__ KernelArgs args) {
  using T = Tile<kVariant, kPerRow>;
  static_assert(sizeof(SharedStorage<T>) == smem_bytes(T::kShape, kPerRow));
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<SharedStorage<T>*>(smem_base);
  const u32 rank = T::kCluster == 1 ? 0 : ptx::cluster_ctarank();

  if (threadIdx.x == 0) {
    smem.ring.init(1, T::kConsumerWarps * T::kCluster);
    ptx::fence_mbarrier_init();
  }
  if constexpr (T::kCluster == 1) {
    __syncthreads();
  } else {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }

  if (threadIdx.x >= T::kConsumerThreads) {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_dec<24>();
    if (threadIdx.x < T::kConsumerThreads + 32) produce<T>(args, smem, rank);
  } else {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_inc<240>();
    consume<T>(args, smem, rank);
  }

  // A block must stay while its peer may still write to it or arrive on its barriers.
  if constexpr (T::kCluster > 1) {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
}

}  // namespace glm5::fp8_gemm_sm90
