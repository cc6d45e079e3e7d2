// The body of the kernels of sm_90a for e4m3 operands with scales: fp8_gemm's, and grouped_gemm's. Names: `left` and
// `right` are wgmma's M and N operands. A Walk says which tiles a block takes, and where they lie.
//
//   producer    one warp fills a ring of stages: 128 of k of both operands (rows of 128 bytes, 128-byte swizzle) and
//               their scales. Scales of single rows come by the copy engine; block scales, whose strides are free, are
//               read 32 groups at a time, one per lane.
//   consumers   one or two warpgroups, each with 64 left rows (two slabs of 64 where left = 256). A group's product
//               starts from zero in `part` and is promoted into `total` by one fused multiply-add per element.
//
// The tensor cores need not wait for promotion: where registers hold two parts, a warpgroup multiplies the next group
// while it promotes this one; where they hold one, the other warpgroup multiplies meanwhile. In clusters the left tile
// is shared: each block loads half of it for both. Slabs that lie wholly beyond the left operand are not multiplied.
//
// No NaN can leak in from padding: what lies outside an operand or its scales arrives as zeros, and rows and columns
// beyond out are never written.
#pragma once

#include "core/glm5.h"
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

namespace glm5::cuda::gemm_fp8 {

static_assert(kStepBytes == kFp8Group, "128 of k at a time");

// One call, by value.
struct KernelArgs {
  CUtensorMap left, right;                // e4m3 [rows, k]
  CUtensorMap left_scales, right_scales;  // f32 [groups, rows]; the side with block scales leaves its own unused
  Tensor<const f32, 2> block_scales;      // [blocks of 128 rows of b, groups]
  cuda::TileOut out;
  cuda::TileGrid grid;  // columns counted in clusters
  int groups;           // of k
};

// Shape::kVariant is a GemmVariant; kPerRow: b has a scale per row.
template <class Shape, bool kPerRow>
struct Tile {
  static constexpr GemmVariant kShape = Shape::kVariant;
  static constexpr bool kSwapped = kShape.schedule == Schedule::swap_ab;
  static constexpr int kLeft = kShape.left, kRight = kShape.right;
  static constexpr int kCluster = kShape.cluster, kStages = kShape.stages;
  static constexpr int kWarpgroups = kShape.consumer_warpgroups(), kConsumerWarps = 4 * kWarpgroups;
  static constexpr int kConsumerThreads = kShape.consumer_threads(), kThreads = kShape.threads();
  static constexpr int kSlabs = kLeft / 64 / kWarpgroups;  // of 64 rows, per consumer warpgroup

  // Which operands have a scale per row. The other (b, unless kPerRow) has one per block of 128 rows.
  static constexpr bool kLeftVector = !kSwapped || kPerRow, kRightVector = kSwapped || kPerRow;
  // A second part where 240 registers hold total and two parts, half of `right` each, and the scales.
  static constexpr bool kTwoParts = kSlabs == 1 && kRight <= 128 && !(kWarpgroups == 2 && kPerRow);
  // Tiles start at multiples of their width, so a run of kRun rows of `right` never crosses a block.
  static constexpr int kRun = kRight % 128 == 0 ? 128 : kRight % 64 == 0 ? 64 : kRight % 32 == 0 ? 32 : 16;
  static constexpr int kRightBlocks = (128 - kRun + kRight + 127) / 128;  // that one tile can touch
  static_assert(kRight % 16 == 0 && kRightBlocks <= 3);

  // Of the 504 registers that three warpgroups are launched with. 128 columns want 192 accumulators; other widths leave
  // more to a producer that reads two blocks' scales.
  static constexpr int kConsumerRegisters = kRight == 128 ? 240 : 232;
  static constexpr int kProducerRegisters = 504 - 2 * kConsumerRegisters;

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

struct TileCorner {
  int left_row, right_row;
  int left_rows;  // from the corner to the end of the left operand
  int expert;     // or -1: there is no such tile
  int row_end;    // of the rows of out
};

// All tiles of one matrix.
template <class T>
struct DenseWalk {
  using Args = KernelArgs;
  static constexpr bool kHasExperts = false;

  __device__ __forceinline__ static TileCorner corner_of(const KernelArgs& args, int tile, u32 rank) {
    if (tile >= args.grid.count()) return {0, 0, 0, -1, 0};
    const cuda::TilePlace place = args.grid.at(tile);
    const int left_row = place.row * T::kLeft, column = place.column * T::kCluster + static_cast<int>(rank);
    return {left_row, column * T::kRight, (T::kSwapped ? args.out.n : args.out.m) - left_row, 0, args.out.m};
  }
  __device__ __forceinline__ static i64 first_scale(const KernelArgs&, const TileCorner&) { return 0; }
};

// ---- producer ----

// The block scales of one tile. Lane i holds group 32 j + i of the j-th batch.
template <int kBlocks>
struct BlockScales {
  const KernelArgs& args;
  i64 first_scale;  // of the expert
  int first_block;
  f32 batch[kBlocks];

  __device__ __forceinline__ BlockScales(const KernelArgs& args, i64 first_scale, int first_row)
      : args(args), first_scale(first_scale), first_block(first_row / 128) {}

  __device__ __forceinline__ void fetch(int first_group) {
    const int group = first_group + threadIdx.x % 32;
    const int last = static_cast<int>(args.block_scales.shape[0]) - 1;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const int block = first_block + i < last ? first_block + i : last;  // beyond the last, the operand is zero
      batch[i] = group < args.groups ? __ldg(args.block_scales.at(block, group) + first_scale) : 0.0f;
    }
  }

  // Writes the group's scales to a slot. Groups come in ascending order; the whole warp calls.
  __device__ __forceinline__ void put(int group, f32* slot) {
    if (group % 32 == 0) fetch(group);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      const f32 scale = __shfl_sync(0xffffffff, batch[i], group % 32);
      if (threadIdx.x % 32 == 0) slot[i] = scale;
    }
    // The compiler reads three as one vector of four: let it find a number there.
    if (kBlocks == 3 && threadIdx.x % 32 == 0) slot[3] = 0.0f;
  }
};

// Both operands have a scale per row: nothing to do.
template <>
struct BlockScales<0> {
  __device__ __forceinline__ BlockScales(const KernelArgs&, i64, int) {}
  __device__ __forceinline__ void put(int, f32*) {}
};

// A box of an operand; that of weights is the expert's.
template <bool kOfExpert>
__device__ __forceinline__ void load_box(u8* to, const CUtensorMap* map, int k, int row, int expert, u64* full) {
  if constexpr (kOfExpert) {
    ptx::cp_async_bulk_tensor_3d(to, map, k, row, expert, full);
  } else {
    ptx::cp_async_bulk_tensor_2d(to, map, k, row, full);
  }
}

template <class T, class Walk>
__device__ __forceinline__ void load_stage(const KernelArgs& args, SharedStorage<T>& smem, int stage, int group,
                                           const TileCorner& corner, u32 rank) {
  const int k = group * kStepBytes;
  u64* full = &smem.ring.full[stage];
  if constexpr (T::kCluster == 1) {
    load_box<Walk::kHasExperts && T::kSwapped>(smem.left[stage][0], &args.left, k, corner.left_row, corner.expert,
                                               full);
  } else {
    static_assert(!T::kSwapped);
    constexpr int kShare = T::kLeft / T::kCluster;
    const int row = static_cast<int>(rank) * kShare;
    ptx::cp_async_bulk_tensor_2d_multicast(smem.left[stage][row], &args.left, k, corner.left_row + row, full,
                                           (1 << T::kCluster) - 1);
  }
  load_box<Walk::kHasExperts && !T::kSwapped>(smem.right[stage][0], &args.right, k, corner.right_row, corner.expert,
                                              full);
  if constexpr (T::kLeftVector) {
    ptx::cp_async_bulk_tensor_2d(smem.left_scales[stage], &args.left_scales, corner.left_row, group, full);
  }
  if constexpr (T::kRightVector) {
    ptx::cp_async_bulk_tensor_2d(smem.right_scales[stage], &args.right_scales, corner.right_row, group, full);
  }
}

// Fetches the tensor maps ahead of the first copy.
template <class T>
__device__ __forceinline__ void prefetch_maps(const KernelArgs& args) {
  ptx::prefetch_tensormap(&args.left);
  ptx::prefetch_tensormap(&args.right);
  if constexpr (T::kLeftVector) ptx::prefetch_tensormap(&args.left_scales);
  if constexpr (T::kRightVector) ptx::prefetch_tensormap(&args.right_scales);
}

// By one whole warp.
template <class T, class Walk>
__device__ __forceinline__ void produce(const typename Walk::Args& args, SharedStorage<T>& smem, u32 rank) {
  constexpr int kBlocks = T::kLeftVector && T::kRightVector ? 0 : T::kSwapped ? 1 : T::kRightBlocks;
  cuda::RingPosition<T::kStages> at;
  for (int tile = blockIdx.x / T::kCluster;; tile += gridDim.x / T::kCluster) {
    const TileCorner corner = Walk::corner_of(args, tile, rank);
    if (corner.expert < 0) break;
    BlockScales<kBlocks> block_scales(args, Walk::first_scale(args, corner),
                                      T::kSwapped ? corner.left_row : corner.right_row);
    for (int group = 0; group < args.groups; ++group, at.advance()) {
      smem.ring.wait_empty(at);
      if (threadIdx.x % 32 == 0) load_stage<T, Walk>(args, smem, at.stage, group, corner, rank);
      // While the copies run. Lane 0's arrival publishes the block scales; the copies' bytes may be counted before it.
      block_scales.put(group, T::kSwapped ? smem.left_scales[at.stage] : smem.right_scales[at.stage]);
      if (threadIdx.x % 32 == 0) smem.ring.arrive_full(at, T::kBytesPerStage);
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
}

// What a thread needs of the scales of one stage and slab.
template <class T>
struct Scales {
  f32 row[2];                    // left: of the two rows, or the block's in both
  f32 block[T::kRightBlocks];    // right, where it has blocks
  const f32* columns = nullptr;  // right, where it has a scale per row: still in shared memory

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
      const int run = j * 8 / T::kRun * T::kRun;  // the first column of this one's run
#pragma unroll
      for (int i = 0; i < T::kRightBlocks; ++i) {
        if (i > 0 && run < block_edge + 128 * (i - 1)) continue;
        scale[0] = scale[1] = product[i][0];
        scale[2] = scale[3] = product[i][1];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[4 * j + i] = __fmaf_rn(scale[i], part[4 * j + i], total[4 * j + i]);
  }
}

// The end of one group: its product has arrived in `part`.
template <class T>
__device__ __forceinline__ void finish(f32 (&total)[T::kRight / 2], f32 (&part)[T::kRight / 2], const Scales<T>& scales,
                                       SharedStorage<T>& smem, const cuda::RingPosition<T::kStages>& at, bool releases,
                                       int block_edge, const Lane& me) {
  ptx::pin(part);
  if (releases && !T::kRightVector) smem.ring.template release<T::kCluster>(at, me.lane);
  promote<T>(total, part, scales, block_edge);
  if (releases && T::kRightVector) smem.ring.template release<T::kCluster>(at, me.lane);  // promote read the stage
}

// One group of a warpgroup with two parts: starts the next group in `ahead`, then finishes this one in `part`.
template <class T>
__device__ __forceinline__ void step_ahead(f32 (&total)[T::kRight / 2], f32 (&part)[T::kRight / 2],
                                           f32 (&ahead)[T::kRight / 2], SharedStorage<T>& smem,
                                           cuda::RingPosition<T::kStages>& at, int block_edge, const Lane& me) {
  const auto here = at;
  at.advance();
  smem.ring.wait_full(at);
  multiply<T>(ahead, smem, at.stage, slab_row<T>(me, 0));
  ptx::wgmma_wait_group<1>();
  finish<T>(total, part, Scales<T>(smem, here.stage, slab_row<T>(me, 0), me), smem, here, true, block_edge, me);
}

template <class T>
__device__ __forceinline__ void step_last(f32 (&total)[T::kRight / 2], f32 (&part)[T::kRight / 2],
                                          SharedStorage<T>& smem, cuda::RingPosition<T::kStages>& at, int block_edge,
                                          const Lane& me) {
  ptx::wgmma_wait_group<0>();
  finish<T>(total, part, Scales<T>(smem, at.stage, slab_row<T>(me, 0), me), smem, at, true, block_edge, me);
  at.advance();
}

// No wgmma under a condition while another is under way: the compiler would wait for each at once (C7518).
template <class T>
__device__ __forceinline__ void multiply_ahead(f32 (&total)[T::kSlabs][T::kRight / 2], SharedStorage<T>& smem,
                                               cuda::RingPosition<T::kStages>& at, int groups, int block_edge,
                                               const Lane& me) {
  f32 even[T::kRight / 2], odd[T::kRight / 2];
  smem.ring.wait_full(at);
  multiply<T>(even, smem, at.stage, slab_row<T>(me, 0));
  for (int pairs = (groups - 1) / 2; pairs > 0; --pairs) {
    step_ahead<T>(total[0], even, odd, smem, at, block_edge, me);
    step_ahead<T>(total[0], odd, even, smem, at, block_edge, me);
  }
  if (groups % 2 == 0) {
    step_ahead<T>(total[0], even, odd, smem, at, block_edge, me);
    step_last<T>(total[0], odd, smem, at, block_edge, me);
  } else {
    step_last<T>(total[0], even, smem, at, block_edge, me);
  }
}

// One part, one slab after the other; the other warpgroup multiplies while this one promotes.
template <class T>
__device__ __forceinline__ void multiply_in_turn(f32 (&total)[T::kSlabs][T::kRight / 2], SharedStorage<T>& smem,
                                                 cuda::RingPosition<T::kStages>& at, int groups, int left_rows,
                                                 int block_edge, const Lane& me) {
  f32 part[T::kRight / 2];
  const int slabs = slab_row<T>(me, T::kSlabs - 1) < left_rows ? T::kSlabs : T::kSlabs - 1;
  for (int group = 0; group < groups; ++group, at.advance()) {
    smem.ring.wait_full(at);
#pragma unroll
    for (int slab = 0; slab < T::kSlabs; ++slab) {
      if (slab > 0 && slab >= slabs) break;
      const int row = slab_row<T>(me, slab);
      const Scales<T> scales(smem, at.stage, row, me);
      multiply<T>(part, smem, at.stage, row);
      ptx::wgmma_wait_group<0>();
      finish<T>(total[slab], part, scales, smem, at, slab + 1 == slabs, block_edge, me);
    }
  }
}

// A warpgroup whose slabs all lie beyond the left operand keeps the ring going.
template <class T>
__device__ __forceinline__ void pass_on(SharedStorage<T>& smem, cuda::RingPosition<T::kStages>& at, int groups,
                                        const Lane& me) {
  for (int group = 0; group < groups; ++group, at.advance()) {
    smem.ring.wait_full(at);
    smem.ring.template release<T::kCluster>(at, me.lane);
  }
}

template <class T, class Walk>
__device__ __forceinline__ void consume(const typename Walk::Args& args, SharedStorage<T>& smem, u32 rank) {
  const Lane me;
  cuda::RingPosition<T::kStages> at;
  for (int tile = blockIdx.x / T::kCluster;; tile += gridDim.x / T::kCluster) {
    f32 total[T::kSlabs][T::kRight / 2] = {};
    {
      const TileCorner corner = Walk::corner_of(args, tile, rank);
      if (corner.expert < 0) break;
      const int block_edge = 128 - corner.right_row % 128;
      if (slab_row<T>(me, 0) >= corner.left_rows) {
        pass_on<T>(smem, at, args.groups, me);
      } else if constexpr (T::kTwoParts) {
        multiply_ahead<T>(total, smem, at, args.groups, block_edge, me);
      } else {
        multiply_in_turn<T>(total, smem, at, args.groups, corner.left_rows, block_edge, me);
      }
    }
    // Found again rather than kept: the loop above has no register to spare.
    asm volatile("" : "+r"(tile));
    const TileCorner corner = Walk::corner_of(args, tile, rank);
    cuda::TileOut out = args.out;
    out.m = corner.row_end;
#pragma unroll
    for (int slab = 0; slab < T::kSlabs; ++slab) {
      const int row = slab_row<T>(me, slab) + 16 * me.warp;
      if (row < corner.left_rows) {
        cuda::store_tile<T::kSwapped, T::kRight>(out, total[slab], smem.staging[4 * me.warpgroup + me.warp],
                                                 corner.left_row + row, corner.right_row);
      }
    }
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
    ptx::fence_mbarrier_init();
  }
  if (threadIdx.x == T::kConsumerThreads) prefetch_maps<T>(args);
  cuda::sync_cluster<T::kCluster>();

  if (threadIdx.x >= T::kConsumerThreads) {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_dec<T::kProducerRegisters>();
    if (threadIdx.x < T::kConsumerThreads + 32) produce<T, Walk>(args, smem, rank);
  } else {
    if constexpr (T::kWarpgroups == 2) ptx::setmaxnreg_inc<T::kConsumerRegisters>();
    consume<T, Walk>(args, smem, rank);
  }

  // A block must stay while its peer may still write to it or arrive on its barriers.
  if constexpr (T::kCluster > 1) cuda::sync_cluster<T::kCluster>();
}

}  // namespace glm5::cuda::gemm_fp8
