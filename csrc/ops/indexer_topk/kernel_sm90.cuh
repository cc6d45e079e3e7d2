// The indexer_topk kernels of sm_90a: scores and selection in one pass over the keys.
//
//   warpgroups 0, 1   score tiles of 64 keys (cuda/indexer_scores.cuh), each for its half of the block's queries, and
//                     append what passes a query's bound to its buffer in the workspace. Every 32 tiles they look at
//                     their buffers; one that might overflow keeps its best topk (and at most a quarter more), whose
//                     worst is the new bound. At the end of a run the warpgroup selects exactly and stores the row.
//   warp 8            the loader of queries and keys
//   warp 9            the loader of weights
//
// The bound never leaves out a key that is chosen: topk candidates are at or above it, and tiles come in ascending
// order, so that a later key of the same score ranks after them. Candidates lie in the buffer in any sequence; all that
// is stored is a function of their set.
//
// Split items leave their best topk in the workspace, and indexer_topk_merge_kernel, a block per token, selects among
// them. config.h says what that costs.
#pragma once

#include "cuda/indexer_scores.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/topk_candidates.cuh"
#include "ops/indexer_topk/config.h"

namespace glm5::indexer_topk_sm90 {

constexpr int kThreads = 384, kMergeThreads = 1024;

// One call, by value.
struct KernelArgs {
  cuda::IndexerScoring scoring;
  Plan plan;
  bool physical;
  Tensor<i32, 2> indices;
  Tensor<f32, 1> margins;
  Tensor<i64, 1> fingerprints;
  i32* buffers;         // [grid, queries, 2, capacity]: orders, indices
  i32* split_orders;    // [tokens, splits, slots]
  i32* split_indices;   // [tokens, splits, slots], -1 (and the last order) where there is none
  i32* split_left_out;  // [tokens, splits]
};

template <class T>
struct SharedStorage {
  cuda::IndexerStorage<T> scores;
  cuda::CandidateTeamStorage<128> teams[cuda::kIndexerWarpgroups];
  int counts[T::kQueries];    // candidates in the buffer
  i32 bounds[T::kQueries];    // the least order that still passes
  i32 left_out[T::kQueries];  // the greatest order that did not
};

// ---- rows ----

// Selects among `from` and stores the token's row. best_left_out: of the keys that are not candidates any more. By a
// whole team.
template <class T, int kTeam>
__device__ __forceinline__ void store_row(const KernelArgs& args, const cuda::CandidateTeam<kTeam>& team, int token,
                                          const cuda::Candidates& from, i32 best_left_out) {
  const auto window = cuda::indexer_window<T>(args.scoring, token);
  const int topk = args.plan.topk, keys = window.end - window.start, chosen = min(topk, keys);
  const cuda::CandidateCut cut = from.count > chosen && chosen > 0 ? team.cut(from, chosen, 0) : cuda::kAllCandidates;
  const i32* table = nullptr;
  if constexpr (T::kPaged) {
    if (args.physical && chosen > 0) table = args.scoring.block_table.at(__ldg(args.scoring.sequences.at(token)), 0);
  }
  i32* row = args.indices.at(token, 0);
  i32 worst = 0x7fffffff;
  u64 fingerprint = 0;
  const auto store = [&](int place, i32 index) {
    row[place] = table != nullptr ? topk_slot(table, index) : index;
    fingerprint += topk_mix(index);
  };
  team.emit(from, cut, window.start, window.end, worst, best_left_out, store);
  for (int place = chosen + team.thread; place < topk; place += kTeam) row[place] = -1;
  if (args.margins.shape[0] > 0) {
    worst = team.reduce(worst, [](i32 a, i32 b) { return min(a, b); });
    best_left_out = team.reduce(best_left_out, [](i32 a, i32 b) { return max(a, b); });
    if (team.thread == 0) {
      *args.margins.at(token) = keys > chosen ? topk_margin(worst, best_left_out) : __int_as_float(0x7f800000);
    }
  }
  if (args.fingerprints.shape[0] > 0) {
    fingerprint = team.reduce(fingerprint, [](u64 a, u64 b) { return a + b; });
    if (team.thread == 0) *args.fingerprints.at(token) = static_cast<i64>(fingerprint);
  }
}

// ---- warpgroups: what becomes of a score ----

template <class T>
struct SelectScores {
  const KernelArgs& args;
  const cuda::IndexerLane<T>& me;
  SharedStorage<T>& smem;
  const cuda::CandidateTeam<128> team;
  int first_query;  // of the warpgroup

  int start = 0, end = 0;  // of the window of this lane's query; 0, 0 where it is not in the run
  i32 bound = kOrderOfNan;
  i32 best_left_out = kOrderOfNan;  // of this lane's keys
  i32* buffer;                      // of this lane's query

  __device__ __forceinline__ SelectScores(const KernelArgs& args, const cuda::IndexerLane<T>& me,
                                          SharedStorage<T>& smem)
      : args(args),
        me(me),
        smem(smem),
        team{smem.teams[me.warpgroup], static_cast<int>(threadIdx.x % 128), 1 + me.warpgroup},
        first_query(me.warpgroup * T::kHalf),
        buffer(buffer_of(me.query)) {}

  __device__ __forceinline__ i32* buffer_of(int query) const {
    return args.buffers + (i64{blockIdx.x} * T::kQueries + query) * 2 * args.plan.capacity;
  }
  __device__ __forceinline__ cuda::Candidates candidates_of(int query, int count) const {
    i32* orders = buffer_of(query);
    return {orders, orders + args.plan.capacity, count};
  }

  __device__ __forceinline__ int chunk() const { return args.plan.chunk_tiles; }

  __device__ __forceinline__ void begin(const cuda::IndexerItem& item, const cuda::IndexerRun& run) {
    start = end = 0;
    if (me.query >= run.first && me.query < run.last) {
      const auto window = cuda::indexer_window<T>(args.scoring, item.block * T::kQueries + me.query);
      start = window.start, end = window.end;
    }
    bound = best_left_out = kOrderOfNan;
    if (team.thread < T::kHalf) {
      const int query = first_query + team.thread;
      smem.counts[query] = 0, smem.bounds[query] = smem.left_out[query] = kOrderOfNan;
    }
    team.sync();
  }

  __device__ __forceinline__ void take(int tile, const f32 (&scores)[T::kKept], bool page_exists) {
    const u32 lanes_of_query = (T::kHalf == 4 ? 0x11111111u : 0x55555555u) << me.quad_lane % T::kHalf;
#pragma unroll
    for (int i = 0; i < T::kKept; ++i) {
      const int key = tile * cuda::kIndexerTile + me.kept_row + 8 * i;
      const i32 order = page_exists ? order_of(scores[i]) : kOrderOfNegativeInfinity;
      const bool inside = key >= start && key < end, passes = inside && order >= bound;
      if (inside && !passes) best_left_out = max(best_left_out, order);
      const u32 votes = __ballot_sync(0xffffffff, passes);
      if (votes == 0) continue;
      const u32 own = votes & lanes_of_query;
      const int leader = own == 0 ? me.lane : __ffs(own) - 1;
      int place = me.lane == leader ? atomicAdd(&smem.counts[me.query], __popc(own)) : 0;
      place = __shfl_sync(0xffffffff, place, leader) + __popc(own & ((1u << me.lane) - 1));
      if (passes) buffer[place] = order, buffer[args.plan.capacity + place] = key;
    }
  }

  __device__ __forceinline__ void compact(int query, int count) {
    const int topk = args.plan.topk;
    const int slack = min(topk / 4, args.plan.chunk_tiles * cuda::kIndexerTile);
    const cuda::Candidates candidates = candidates_of(query, count);
    const cuda::CandidateCut cut = team.cut(candidates, topk, slack);
    i32 left_out = kOrderOfNan;
    const int kept = team.keep(candidates, candidates, cut, left_out);
    left_out = team.reduce(left_out, [](i32 a, i32 b) { return max(a, b); });
    if (team.thread == 0) {
      smem.counts[query] = kept, smem.bounds[query] = cut.order + 1;
      smem.left_out[query] = max(smem.left_out[query], left_out);
    }
  }

  __device__ __forceinline__ void checkpoint() {
    team.sync();
    u32 full = 0;
#pragma unroll
    for (int i = 0; i < T::kHalf; ++i) full |= (smem.counts[first_query + i] > args.plan.limit ? 1u : 0u) << i;
    team.sync();  // before anyone appends again
    if (full == 0) return;
#pragma unroll 1
    for (; full != 0; full &= full - 1) {
      const int query = first_query + __ffs(full) - 1;
      compact(query, smem.counts[query]);
    }
    team.sync();
    bound = smem.bounds[me.query];
  }

  // The best topk of a split, for the merge.
  __device__ __forceinline__ void leave(int token, int split, const cuda::Candidates& from, i32 left_out) const {
    const int topk = args.plan.topk, slots = args.plan.slots;
    const cuda::CandidateCut cut = from.count > topk ? team.cut(from, topk, 0) : cuda::kAllCandidates;
    const i64 place = i64{token} * args.plan.cut.splits + split;
    const cuda::Candidates to{args.split_orders + place * slots, args.split_indices + place * slots, slots};
    const int kept = team.keep(from, to, cut, left_out);
    for (int i = kept + team.thread; i < slots; i += 128) to.orders[i] = kOrderOfNan, to.indices[i] = -1;
    left_out = team.reduce(left_out, [](i32 a, i32 b) { return max(a, b); });
    if (team.thread == 0) args.split_left_out[place] = left_out;
  }

  __device__ __forceinline__ void end_run(const cuda::IndexerItem& item, const cuda::IndexerRun& run) {
    atomicMax(&smem.left_out[me.query], best_left_out);
    team.sync();
#pragma unroll 1
    for (int query = max(run.first, first_query); query < min(run.last, first_query + T::kHalf); ++query) {
      const int token = item.block * T::kQueries + query;
      const cuda::Candidates from = candidates_of(query, smem.counts[query]);
      if (args.plan.cut.splits == 1) {
        store_row<T>(args, team, token, from, smem.left_out[query]);
      } else {
        leave(token, item.split, from, smem.left_out[query]);
      }
    }
    team.sync();  // before the next run clears the counts
  }
};

// ---- kernels ----

template <class T>
__global__ __launch_bounds__(kThreads, 1) void indexer_topk_kernel(const __grid_constant__ KernelArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<SharedStorage<T>*>(smem_base);
  if (threadIdx.x == 0) {
    smem.scores.init();
    ptx::fence_mbarrier_init();
  }
  __syncthreads();

  // 2 x 128 x 216 + 128 x 72 registers are what 384 threads of 168 were given.
  if (threadIdx.x >= T::kMathThreads) {
    ptx::setmaxnreg_dec<72>();
    const int warp = static_cast<int>(threadIdx.x - T::kMathThreads) / 32;
    if (warp == 0) cuda::indexer_load<T>(args.scoring, smem.scores);
    if (warp == 1) cuda::indexer_load_weights<T>(args.scoring, smem.scores);
  } else {
    ptx::setmaxnreg_inc<216>();
    const cuda::IndexerLane<T> me;
    SelectScores<T> sink(args, me, smem);
    cuda::indexer_score<T>(args.scoring, smem.scores, me, sink);
  }
}

template <class T>
__global__ __launch_bounds__(kMergeThreads, 1) void indexer_topk_merge_kernel(const __grid_constant__ KernelArgs args) {
  __shared__ cuda::CandidateTeamStorage<kMergeThreads> smem;
  const cuda::CandidateTeam<kMergeThreads> team{smem, static_cast<int>(threadIdx.x), 0};
  const int token = blockIdx.x, splits = args.plan.cut.splits;
  const i64 first = i64{token} * splits;
  i32 best_left_out = kOrderOfNan;
  for (int split = threadIdx.x; split < splits; split += kMergeThreads) {
    best_left_out = max(best_left_out, args.split_left_out[first + split]);
  }
  const cuda::Candidates from{args.split_orders + first * args.plan.slots, args.split_indices + first * args.plan.slots,
                              splits * args.plan.slots};
  store_row<T>(args, team, token, from, best_left_out);
}

// ---- launcher ----

template <class Element, int kHeads, bool kPaged>
void launch_kernels(const KernelArgs& args, const cuda::Device& device, const char* op, void* stream) {
  using T = cuda::IndexerTile<Element, kHeads, kPaged>;
  constexpr int kBytes = static_cast<int>(sizeof(SharedStorage<T>));
  static_assert(kBytes <= cuda::kMaxSmemBytes);
  cuda::launch<indexer_topk_kernel<T>>(
      op, device, {.blocks = dim3(args.plan.cut.grid), .threads = kThreads, .smem_bytes = kBytes}, stream, args);
  if (args.plan.cut.splits == 1) return;
  cuda::launch<indexer_topk_merge_kernel<T>>(
      op, device, {.blocks = dim3(args.scoring.tokens), .threads = kMergeThreads}, stream, args);
}

template <bool kPaged>
void launch_heads(const KernelArgs& args, bool is_e4m3, i64 heads, const cuda::Device& device, const char* op,
                  void* stream) {
  if (is_e4m3) {
    if (heads == 32) return launch_kernels<e4m3, 32, kPaged>(args, device, op, stream);
    return launch_kernels<e4m3, 64, kPaged>(args, device, op, stream);
  }
  if (heads == 32) return launch_kernels<bf16, 32, kPaged>(args, device, op, stream);
  return launch_kernels<bf16, 64, kPaged>(args, device, op, stream);
}

}  // namespace glm5::indexer_topk_sm90
