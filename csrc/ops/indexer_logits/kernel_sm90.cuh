// The indexer_logits kernel of sm_90a, for dense and paged keys, e4m3 and bf16, 32 and 64 heads.
//
//   warpgroups 0, 1   score tiles of 64 keys (cuda/indexer_scores.cuh) and store them, -inf where a window ends
//   warp 8            the loader of queries and keys
//   warp 9            the loader of weights
//   warps 10, 11      fill with -inf what no tile covers, beside the others
//
// How the work is cut, and the floor: cuda/indexer_plan.h. Every score is stored once, straight from registers: eight
// lanes hold eight neighbours of a row, a sector of 32 bytes.
#pragma once

#include "cuda/indexer_scores.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"

namespace glm5::indexer_logits_sm90 {

constexpr int kThreads = 384, kFillers = 2;
constexpr f32 kOutside = -__builtin_huge_valf();

// One call, by value.
struct KernelArgs {
  cuda::IndexerScoring scoring;
  Tensor<f32, 2> out;  // [tokens, keys]
};

// ---- warpgroups: what becomes of a score ----

template <class T>
struct StoreScores {
  const KernelArgs& args;
  const cuda::IndexerLane<T>& me;
  int start = 0, end = 0;  // of the window of this lane's query
  int keys = 0;            // that may be stored: none where its query is not in the run
  f32* row = nullptr;

  __device__ __forceinline__ StoreScores(const KernelArgs& args, const cuda::IndexerLane<T>& me) : args(args), me(me) {}

  __device__ __forceinline__ void begin(const cuda::IndexerItem& item, const cuda::IndexerRun& run) {
    const bool stores = me.query >= run.first && me.query < run.last;
    const int token = item.block * T::kQueries + (stores ? me.query : run.first);
    const auto window = cuda::indexer_window<T>(args.scoring, token);
    start = window.start, end = window.end;
    keys = stores ? static_cast<int>(args.out.shape[1]) : 0;
    row = args.out.at(token, 0);
  }

  __device__ __forceinline__ void take(int tile, const f32 (&scores)[T::kKept], bool page_exists) {
#pragma unroll
    for (int i = 0; i < T::kKept; ++i) {
      const int key = tile * cuda::kIndexerTile + me.kept_row + 8 * i;
      const bool inside = page_exists && key >= start && key < end;
      if (key < keys) row[key] = inside ? scores[i] : kOutside;
    }
  }

  __device__ __forceinline__ int chunk() const { return 0x7fffffff; }
  __device__ __forceinline__ void checkpoint() {}
  __device__ __forceinline__ void end_run(const cuda::IndexerItem&, const cuda::IndexerRun&) {}
};

// ---- fillers ----

// By a whole warp: 16 bytes a lane where they are aligned.
__device__ __forceinline__ void fill(f32* from, f32* to) {
  const int lane = threadIdx.x % 32;
  f32* first = reinterpret_cast<f32*>((reinterpret_cast<std::uintptr_t>(from) + 15) & ~std::uintptr_t{15});
  if (first > to) first = to;
  f32* const last = first + (to - first) / 4 * 4;
  if (from + lane < first) from[lane] = kOutside;
  for (f32* at = first + 4 * lane; at < last; at += 128) {
    *reinterpret_cast<float4*>(at) = {kOutside, kOutside, kOutside, kOutside};
  }
  if (last + lane < to) last[lane] = kOutside;
}

// The keys of every item that are in none of its tiles.
template <class T>
__device__ __forceinline__ void fill_outside(const KernelArgs& args, int filler) {
  const int keys = static_cast<int>(args.out.shape[1]);
  for (cuda::IndexerItem item; item.find(args.scoring.plan); item.advance()) {
    cuda::IndexerRuns<T> runs(args.scoring, item.block);
    for (cuda::IndexerRun run; runs.next(run, item);) {
      for (int query = run.first; query < run.last; ++query) {
        if (query % kFillers != filler) continue;
        f32* row = args.out.at(item.block * T::kQueries + query, 0);
        const auto place = [=](int tile) { return row + min(tile * cuda::kIndexerTile, keys); };
        fill(place(item.first_tile), place(run.first_tile));
        fill(place(run.last_tile), place(item.last_tile));
      }
    }
  }
}

// ---- kernel ----

template <class T>
__global__ __launch_bounds__(kThreads, 1) void indexer_logits_kernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<cuda::IndexerStorage<T>*>(smem_base);
  if (threadIdx.x == 0) {
    smem.init();
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  // 2 x 128 x 216 + 128 x 72 registers are what 384 threads of 168 were given.
  if (threadIdx.x >= T::kMathThreads) {
    ptx::setmaxnreg_dec<72>();
    const int warp = static_cast<int>(threadIdx.x - T::kMathThreads) / 32;
    if (warp == 0) {
      cuda::indexer_load<T>(args.scoring, smem);
    } else if (warp == 1) {
      cuda::indexer_load_weights<T>(args.scoring, smem);
    } else {
      fill_outside<T>(args, warp - 2);
    }
  } else {
    ptx::setmaxnreg_inc<216>();
    const cuda::IndexerLane<T> me;
    StoreScores<T> sink(args, me);
    cuda::indexer_score<T>(args.scoring, smem, me, sink);
  }
}

// ---- launcher ----

template <class Element, int kHeads, bool kPaged>
void launch_kernel(const KernelArgs& args, const cuda::Device& device, const char* op, void* stream) {
  using T = cuda::IndexerTile<Element, kHeads, kPaged>;
  constexpr int kBytes = static_cast<int>(sizeof(cuda::IndexerStorage<T>));
  static_assert(kBytes <= cuda::kMaxSmemBytes);
  cuda::launch<indexer_logits_kernel<T>>(
      op, device, {.blocks = dim3(args.scoring.plan.grid), .threads = kThreads, .smem_bytes = kBytes}, stream, args);
}

template <bool kPaged>
void launch_heads(const KernelArgs& args, bool is_e4m3, i64 heads, const cuda::Device& device, const char* op,
                  void* stream) {
  if (is_e4m3) {
    if (heads == 32) return launch_kernel<e4m3, 32, kPaged>(args, device, op, stream);
    return launch_kernel<e4m3, 64, kPaged>(args, device, op, stream);
  }
  if (heads == 32) return launch_kernel<bf16, 32, kPaged>(args, device, op, stream);
  return launch_kernel<bf16, 64, kPaged>(args, device, op, stream);
}

}  // namespace glm5::indexer_logits_sm90
