// The indexer's scores on sm_90a, for every kernel that needs them; what becomes of a score is the kernel's. The tree:
// ops/indexer_logits/indexer_logits.h.
//
//   loader          one warp copies a block of queries (two are held) and its keys, tile after tile, into a ring: rows
//                   of 128 bytes, 128-byte swizzle; e4m3 has one per key, bf16 two. Paged keys: a tile is a page.
//   weights         one warp brings the weights of the block's heads beside the queries.
//   two warpgroups  multiply and score. Each has its half of the block's queries, 128 pairs of a query and a head, for
//                   every tile; it has two accumulators and multiplies the next tile while it scores this one. Keys
//                   are wgmma's M operand: a lane holds the heads (h / 2) % 4 = lane % 4 of two keys, the chains c_j,
//                   and weights stay in its registers. Four lanes add up a score, each keeping different ones.
//
// Queries of a block with the same sequence form a run (dense keys: one run), which visits the tiles that their windows
// span, clamped to the item. A warpgroup none of whose queries are in a run passes its tiles on.
//
// NaN outside windows cannot leak: a key's score comes from its own row, and callers replace what lies outside. A page
// that the cache does not have arrives as zeros and is marked.
#pragma once

#include "cuda/indexer_maps.h"
#include "cuda/pipeline.cuh"
#include "cuda/ptx/cp_async_bulk_tensor.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace glm5::cuda {

template <class Element, int kHeadsOf, bool kPagedOf>
struct IndexerTile {
  static constexpr bool kE4m3 = sizeof(Element) == 1, kPaged = kPagedOf;
  static constexpr int kHeads = kHeadsOf;
  static constexpr int kHalf = kIndexerPairs / kHeads;  // queries of a warpgroup
  static constexpr int kQueries = kIndexerWarpgroups * kHalf;
  static constexpr int kParts = kE4m3 ? 1 : 2;    // rows of 128 bytes that hold the dim
  static constexpr int kStages = kE4m3 ? 12 : 4;  // of keys: 64 to 96 KiB under way; latency asks for about 32
  static constexpr int kQueryStages = 2;          // 32 or 64 KiB each
  static constexpr int kMathThreads = 128 * kIndexerWarpgroups, kMathWarps = kMathThreads / 32;
  static constexpr u32 kKeyBytes = kParts * kIndexerTile * 128 + (kE4m3 ? kIndexerTile * 4 : 0);
  static constexpr u32 kQueryBytes = kParts * kIndexerWarpgroups * kIndexerPairs * 128;
  static_assert(kHeads == indexer_queries(1) / kQueries && kHalf >= 2 && kQueries <= 32);

  // Of the scores of a tile (query, key or key + 8) that a lane has a share in, those that it ends up with: it has one
  // query, `query` of its warpgroup, and keys row + 8 i.
  static constexpr int kKept = kHalf / 2;
  static_assert(kHalf == 4 || kHalf == 2);
};

template <class T>
struct IndexerStorage {
  alignas(1024) u8 queries[T::kQueryStages][T::kParts][kIndexerWarpgroups * kIndexerPairs][128];
  alignas(1024) u8 keys[T::kStages][T::kParts][kIndexerTile][128];
  alignas(128) f32 scales[T::kStages][kIndexerTile];
  alignas(16) f32 weights[T::kQueryStages][kIndexerWarpgroups * kIndexerPairs];
  u32 page_exists[T::kStages];
  Pipeline<T::kStages> key_ring;
  Pipeline<T::kQueryStages> query_ring;

  __device__ __forceinline__ void init() {
    key_ring.init(1, T::kMathWarps);
    query_ring.init(2, T::kMathWarps);  // full: queries and weights
  }
};

// ---- work: items, and the runs of a block. Every warp finds the same ----

struct IndexerItem {
  int round = 0;
  int block, split;
  int first_tile, last_tile;  // of its span

  __device__ __forceinline__ bool find(const IndexerPlan& plan) {
    const int turn = static_cast<int>(round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x);
    const int index = round * static_cast<int>(gridDim.x) + turn;
    if (index >= plan.items()) return false;
    const int part = index / plan.blocks, span = part / plan.splits;
    block = plan.blocks - 1 - index % plan.blocks;
    split = part % plan.splits;
    first_tile = span * plan.span_tiles;
    last_tile = min(first_tile + plan.span_tiles, plan.tiles);
    return true;
  }
  __device__ __forceinline__ void advance() { ++round; }
};

struct IndexerRun {
  int first, last;  // queries of the block
  int sequence;
  int first_tile, last_tile;  // both the item's first where there is none
};

struct IndexerWindow {
  int start, end;  // both 0 where there are no keys
};

// Cut to the keys; empty where the table lacks the token's sequence.
template <class T>
__device__ __forceinline__ IndexerWindow indexer_window(const IndexerScoring& args, int token) {
  const int start = max(__ldg(args.windows.at(token, 0)), 0);
  const int end = min(__ldg(args.windows.at(token, 1)), args.keys_end);
  bool has_keys = start < end;
  if constexpr (T::kPaged) {
    const int sequence = __ldg(args.sequences.at(token));
    has_keys = has_keys && sequence >= 0 && sequence < args.block_table.shape[0];
  }
  return has_keys ? IndexerWindow{start, end} : IndexerWindow{0, 0};
}

// By a whole warp; a lane per query.
template <class T>
struct IndexerRuns {
  const IndexerPlan& plan;
  int start, end;  // of the lane's window; no keys: start above every key
  int sequence;
  int count;   // queries of the block that exist
  u32 begins;  // a bit for each first query of a run that is still to come

  __device__ __forceinline__ IndexerRuns(const IndexerScoring& args, int block) : plan(args.plan) {
    const int lane = threadIdx.x % 32, token = block * T::kQueries + lane;
    count = min(T::kQueries, args.tokens - block * T::kQueries);
    const bool exists = lane < count;
    const IndexerWindow window = exists ? indexer_window<T>(args, token) : IndexerWindow{0, 0};
    start = window.start < window.end ? window.start : 0x7fffffff;
    end = window.end;
    sequence = T::kPaged && exists ? __ldg(args.sequences.at(token)) : 0;
    const int before = __shfl_up_sync(0xffffffff, sequence, 1);
    begins = __ballot_sync(0xffffffff, exists && (lane == 0 || sequence != before));
  }

  // Whether any run can have a tile of the item.
  __device__ __forceinline__ bool reach(const IndexerItem& item) const {
    const int lowest = __reduce_min_sync(0xffffffff, start), highest = __reduce_max_sync(0xffffffff, end);
    return lowest / kIndexerTile < item.last_tile && (highest + kIndexerTile - 1) / kIndexerTile > item.first_tile;
  }

  __device__ __forceinline__ bool next(IndexerRun& run, const IndexerItem& item) {
    if (begins == 0) return false;
    run.first = __ffs(begins) - 1;
    begins &= begins - 1;
    run.last = begins == 0 ? count : __ffs(begins) - 1;
    const int lane = threadIdx.x % 32;
    const bool inside = lane >= run.first && lane < run.last;
    const int lowest = __reduce_min_sync(0xffffffff, inside ? start : 0x7fffffff);
    const int highest = __reduce_max_sync(0xffffffff, inside ? end : 0);
    run.sequence = __shfl_sync(0xffffffff, sequence, run.first);
    run.first_tile = max(lowest / kIndexerTile, item.first_tile);
    run.last_tile = min((highest + kIndexerTile - 1) / kIndexerTile, item.last_tile);
    if (run.first_tile >= run.last_tile) run.first_tile = run.last_tile = item.first_tile;
    if (plan.splits > 1) {
      const i64 tiles = run.last_tile - run.first_tile;
      run.last_tile = run.first_tile + static_cast<int>(tiles * (item.split + 1) / plan.splits);
      run.first_tile += static_cast<int>(tiles * item.split / plan.splits);
    }
    return true;
  }
};

// ---- loader ----

// The pages of a run's tiles. Lane i holds that of tile 32 j + i of the run.
struct IndexerPages {
  const IndexerScoring& args;
  const IndexerRun& run;
  int batch = 0;

  // Tiles come in ascending order; the whole warp calls. A page beyond the cache is one past its end.
  __device__ __forceinline__ int at(int tile) {
    const int lane = threadIdx.x % 32, place = tile - run.first_tile;
    if (place % 32 == 0) {
      batch = tile + lane < run.last_tile ? __ldg(args.block_table.at(run.sequence, tile + lane)) : 0;
      if (batch < 0 || batch >= args.pages) batch = args.pages;
    }
    return __shfl_sync(0xffffffff, batch, place % 32);
  }
};

template <class T>
__device__ __forceinline__ void load_queries(const IndexerScoring& args, IndexerStorage<T>& smem,
                                             const RingPosition<T::kQueryStages>& at, int block) {
  if (threadIdx.x % 32 == 0) {
    smem.query_ring.arrive_full(at, T::kQueryBytes);
#pragma unroll
    for (int part = 0; part < T::kParts; ++part) {
      ptx::cp_async_bulk_tensor_3d(smem.queries[at.stage][part], &args.q, 64 * part, 0, block * T::kQueries,
                                   &smem.query_ring.full[at.stage]);
    }
  }
  __syncwarp();
}

// By the whole warp: each tile is waited for by all, copied by one.
template <class T>
__device__ __forceinline__ void load_keys(const IndexerScoring& args, IndexerStorage<T>& smem,
                                          const RingPosition<T::kStages>& at, int tile, int page) {
  if (threadIdx.x % 32 == 0) {
    u64* full = &smem.key_ring.full[at.stage];
    const int row = T::kPaged ? 0 : tile * kIndexerTile;
    if constexpr (T::kPaged) smem.page_exists[at.stage] = page < args.pages;  // published by the arrival
    smem.key_ring.arrive_full(at, T::kKeyBytes);
#pragma unroll
    for (int part = 0; part < T::kParts; ++part) {
      ptx::cp_async_bulk_tensor_3d(smem.keys[at.stage][part], &args.keys, 64 * part, row, page, full);
    }
    if constexpr (T::kE4m3) {
      ptx::cp_async_bulk_tensor_2d(smem.scales[at.stage], &args.scales, args.scales_column + row, page, full);
    }
  }
  __syncwarp();
}

// By one whole warp.
template <class T>
__device__ __forceinline__ void indexer_load(const IndexerScoring& args, IndexerStorage<T>& smem) {
  RingPosition<T::kQueryStages> query_at;
  RingPosition<T::kStages> at;
  for (IndexerItem item; item.find(args.plan); item.advance()) {
    IndexerRuns<T> runs(args, item.block);
    if (!runs.reach(item)) continue;
    smem.query_ring.wait_empty(query_at);
    load_queries<T>(args, smem, query_at, item.block);
    query_at.advance();
    for (IndexerRun run; runs.next(run, item);) {
      IndexerPages pages{args, run};
      for (int tile = run.first_tile; tile < run.last_tile; ++tile, at.advance()) {
        const int page = T::kPaged ? pages.at(tile) : 0;
        smem.key_ring.wait_empty(at);
        load_keys<T>(args, smem, at, tile, page);
      }
    }
  }
}

// By one whole warp, beside the loader.
template <class T>
__device__ __forceinline__ void indexer_load_weights(const IndexerScoring& args, IndexerStorage<T>& smem) {
  constexpr int kPairs = kIndexerWarpgroups * kIndexerPairs;
  const int lane = threadIdx.x % 32;
  RingPosition<T::kQueryStages> at;
  for (IndexerItem item; item.find(args.plan); item.advance()) {
    const IndexerRuns<T> runs(args, item.block);
    if (!runs.reach(item)) continue;
    f32 weights[kPairs / 32];
#pragma unroll
    for (int i = 0; i < kPairs / 32; ++i) {
      const int query = (32 * i + lane) / T::kHeads, head = (32 * i + lane) % T::kHeads;
      weights[i] = query < runs.count ? __ldg(args.weights.at(item.block * T::kQueries + query, head)) : 0.0f;
    }
    smem.query_ring.wait_empty(at);
#pragma unroll
    for (int i = 0; i < kPairs / 32; ++i) smem.weights[at.stage][32 * i + lane] = weights[i];
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&smem.query_ring.full[at.stage]);
    at.advance();
  }
}

// ---- the two warpgroups ----

// One thread's place: of the tile, keys `row` and row + 8; of the scores, one query.
template <class T>
struct IndexerLane {
  int warpgroup, lane, row, quad_lane;
  int query;     // of the block
  int kept_row;  // the kept scores are of keys kept_row + 8 i

  __device__ IndexerLane()
      : warpgroup(threadIdx.x / 128),
        lane(threadIdx.x % 32),
        row(threadIdx.x / 32 % 4 * 16 + lane / 4),
        quad_lane(lane % 4),
        query(warpgroup * T::kHalf + quad_lane % T::kHalf),
        kept_row(row + quad_lane / T::kHalf * 8) {}
};

// What one tile is scored with beside the products.
template <class T>
struct IndexerFactors {
  f32 half_scale[T::kKept];
  bool page_exists = true;

  __device__ __forceinline__ IndexerFactors(const IndexerStorage<T>& smem, int stage, const IndexerLane<T>& me) {
#pragma unroll
    for (int i = 0; i < T::kKept; ++i) {
      half_scale[i] = T::kE4m3 ? 0.5f * smem.scales[stage][me.kept_row + 8 * i] : 0.5f;
    }
    if constexpr (T::kPaged) page_exists = smem.page_exists[stage] != 0;
  }
};

// products = keys[64] queries[128 pairs]^T over the whole dim, under way when this returns.
template <class T>
__device__ __forceinline__ void multiply_tile(f32 (&products)[kIndexerPairs / 2], const IndexerStorage<T>& smem,
                                              int stage, int query_stage, int warpgroup) {
  ptx::pin(products);
  ptx::wgmma_fence();
#pragma unroll
  for (int part = 0; part < T::kParts; ++part) {
    const u64 keys = ptx::wgmma_descriptor(smem.keys[stage][part]);
    const u64 queries = ptx::wgmma_descriptor(smem.queries[query_stage][part][warpgroup * kIndexerPairs]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const u64 offset = step * ptx::kDescriptorStepK32;  // 32 bytes, in either type
      if constexpr (T::kE4m3) {
        ptx::wgmma_m64k32_f32_e4m3_e4m3(products, keys + offset, queries + offset, step != 0);
      } else {
        ptx::wgmma_m64k16_f32_bf16_bf16<ptx::Major::k, ptx::Major::k>(products, keys + offset, queries + offset,
                                                                      part + step != 0);
      }
    }
  }
  ptx::wgmma_commit_group();
}

// Adds each sum over the lanes lane and lane ^ kMask, which then keep half of them each: sums[i] is what was sums[2 i]
// or, in lanes with the bit kMask, sums[2 i + 1].
template <int kMask, int kCount>
__device__ __forceinline__ void add_and_halve(f32* sums, int lane) {
  const bool odd = (lane & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const f32 given = odd ? sums[2 * i] : sums[2 * i + 1], kept = odd ? sums[2 * i + 1] : sums[2 * i];
    sums[i] = __fadd_rn(kept, __shfl_xor_sync(0xffffffff, given, kMask));
  }
}

// The scores that this lane keeps, by the tree; weights[2 g + i] is that of the pair 8 g + 2 (lane % 4) + i.
template <class T>
__device__ __forceinline__ void score_tile(f32 (&scores)[T::kKept], const f32 (&products)[kIndexerPairs / 2],
                                           const f32 (&weights)[kIndexerPairs / 4], const IndexerFactors<T>& factors,
                                           int lane) {
  f32 sums[2 * T::kHalf] = {};  // of query q and key row + 8 r at [q + kHalf * r]
#pragma unroll
  for (int group = 0; group < kIndexerPairs / 8; ++group) {
    const int query = group * 8 / T::kHeads;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const f32 product = products[4 * group + i];
      f32& sum = sums[query + T::kHalf * (i / 2)];
      sum = __fmaf_rn(weights[2 * group + i % 2], __fadd_rn(product, fabsf(product)), sum);
    }
  }
  add_and_halve<1, 2 * T::kHalf>(sums, lane);
  add_and_halve<2, T::kHalf>(sums, lane);
#pragma unroll
  for (int i = 0; i < T::kKept; ++i) scores[i] = __fmul_rn(sums[i], factors.half_scale[i]);
}

// The tiles of one run, on their way through a warpgroup. Sink: take(tile, scores, page_exists).
template <class T, class Sink>
struct IndexerMath {
  IndexerStorage<T>& smem;
  Sink& sink;
  const IndexerLane<T>& me;
  RingPosition<T::kStages>& at;  // of the tile that was multiplied last
  const f32 (&weights)[kIndexerPairs / 4];
  int query_stage;

  __device__ __forceinline__ void multiply(f32 (&products)[kIndexerPairs / 2]) {
    smem.key_ring.wait_full(at);
    multiply_tile<T>(products, smem, at.stage, query_stage, me.warpgroup);
  }

  __device__ __forceinline__ void finish(f32 (&products)[kIndexerPairs / 2], const RingPosition<T::kStages>& here,
                                         int tile) {
    ptx::pin(products);
    const IndexerFactors<T> factors(smem, here.stage, me);
    smem.key_ring.template release<1>(here, me.lane);
    f32 scores[T::kKept];
    score_tile<T>(scores, products, weights, factors, me.lane);
    sink.take(tile, scores, factors.page_exists);
  }

  // Starts tile + 1 in `ahead`, then finishes `tile` in `products`.
  __device__ __forceinline__ void step_ahead(f32 (&products)[kIndexerPairs / 2], f32 (&ahead)[kIndexerPairs / 2],
                                             int tile) {
    const auto here = at;
    at.advance();
    multiply(ahead);
    ptx::wgmma_wait_group<1>();
    finish(products, here, tile);
  }

  __device__ __forceinline__ void step_last(f32 (&products)[kIndexerPairs / 2], int tile) {
    ptx::wgmma_wait_group<0>();
    finish(products, at, tile);
    at.advance();
  }

  // tiles > 0. No wgmma under a condition while another is under way: the compiler would wait for each at once (C7518).
  __device__ __forceinline__ void score(int tile, int tiles) {
    f32 even[kIndexerPairs / 2], odd[kIndexerPairs / 2];
    multiply(even);
    for (int pairs = (tiles - 1) / 2; pairs > 0; --pairs, tile += 2) {
      step_ahead(even, odd, tile);
      step_ahead(odd, even, tile + 1);
    }
    if (tiles % 2 == 0) {
      step_ahead(even, odd, tile);
      step_last(odd, tile + 1);
    } else {
      step_last(even, tile);
    }
  }

  // The tiles of a run without a query of this warpgroup.
  __device__ __forceinline__ void pass_on(int tiles) {
    for (int i = 0; i < tiles; ++i, at.advance()) {
      smem.key_ring.wait_full(at);
      smem.key_ring.template release<1>(at, me.lane);
    }
  }
};

// By both warpgroups. Sink, beside take(): begin(item, run) and end_run(item, run) around the tiles of a run in which
// the warpgroup has queries, and checkpoint() after every chunk() tiles of it, while nothing is under way.
template <class T, class Sink>
__device__ __forceinline__ void indexer_score(const IndexerScoring& args, IndexerStorage<T>& smem,
                                              const IndexerLane<T>& me, Sink& sink) {
  RingPosition<T::kQueryStages> query_at;
  RingPosition<T::kStages> at;
  for (IndexerItem item; item.find(args.plan); item.advance()) {
    IndexerRuns<T> runs(args, item.block);
    const bool reaches = runs.reach(item);
    f32 weights[kIndexerPairs / 4];
    if (reaches) {
      smem.query_ring.wait_full(query_at);
      const f32* from = &smem.weights[query_at.stage][me.warpgroup * kIndexerPairs + 2 * me.quad_lane];
#pragma unroll
      for (int group = 0; group < kIndexerPairs / 8; ++group) {
        const float2 pair = *reinterpret_cast<const float2*>(from + 8 * group);
        weights[2 * group] = pair.x, weights[2 * group + 1] = pair.y;
      }
    }
    IndexerMath<T, Sink> math{smem, sink, me, at, weights, query_at.stage};
    for (IndexerRun run; runs.next(run, item);) {
      const int first = me.warpgroup * T::kHalf;
      if (run.last <= first || run.first >= first + T::kHalf) {
        math.pass_on(run.last_tile - run.first_tile);
        continue;
      }
      sink.begin(item, run);
      for (int tile = run.first_tile; tile < run.last_tile;) {
        const int tiles = min(run.last_tile - tile, sink.chunk());
        math.score(tile, tiles);
        tile += tiles;
        sink.checkpoint();
      }
      sink.end_run(item, run);
    }
    if (reaches) {
      smem.query_ring.template release<1>(query_at, me.lane);
      query_at.advance();
    }
  }
}

}  // namespace glm5::cuda
