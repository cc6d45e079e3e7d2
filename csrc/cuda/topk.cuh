// An exact top-k by a block, or by the blocks of a cluster together: what topk_select and indexer_topk share.
//
// A score becomes a key, a u32 that orders as core/topk.h says; the k-th key is found digit by digit, 11 + 11 + 10 bits,
// with a histogram in shared memory each. Nothing has a capacity: a source is whatever can be read again.
//
//   TopkCut cut = {.need = k};                                       // 1 <= k < keys of all blocks together
//   for (int level = 0; !cut.done; ++level) {
//     topk_count<kThreads>(source, storage, level, cut);             // storage.clear() once before
//     topk_find<kThreads>(storage, level, cluster, cut);
//   }
//   const TopkPlace place = topk_place(storage, cluster, cut);       // of this block's first result
//   topk_visit<kThreads>(source, storage, cut, place, visitor);      // visitor.take(position, index, key), .leave(key)
//
// All threads of all blocks of the cluster call all of them; `cluster` is 1 where there is none, and `cut` is the same
// in all threads of a block. The blocks' sources follow one another by index: block 0's come first. Positions are
// 0 .. k - 1 in the order of the source, so where it ascends by index, ties go to the smaller index and results ascend.
// Histograms are added up by atomics, which decide no order; positions come from prefix sums. The sources:
//
//   TopkScores   a piece of a row of scores in global memory, with any alignment
//   TopkKeys     the same piece, as keys in shared memory
//   TopkList     keys and their indices, in shared or global memory
#pragma once

#include "core/topk.h"
#include "cuda/ptx/address.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/ld.cuh"

namespace glm5::cuda {

__device__ __forceinline__ u32 topk_key(f32 score) { return static_cast<u32>(order_of(score)) ^ 0x80000000u; }
__device__ __forceinline__ i32 topk_order(u32 key) { return static_cast<i32>(key ^ 0x80000000u); }
constexpr u32 kTopkKeyOfZero = 0x80000000u;

constexpr int kTopkBins = 2048, kTopkLevels = 3;
constexpr int kTopkQuads = 2;  // that a thread reads before it looks at them: 32 bytes in flight

// The digit of a level, and the bits above it that a key must share with the cut to be counted.
__device__ __forceinline__ int topk_shift(int level) { return level == 0 ? 21 : level == 1 ? 10 : 0; }
__device__ __forceinline__ u32 topk_digit(int level) { return level == 2 ? 1023 : 2047; }
__device__ __forceinline__ u32 topk_prefix(int level) { return level == 0 ? 0 : level == 1 ? 0xffe00000u : 0xfffffc00u; }

// ---- Sources: quads of four neighbours ----

struct TopkQuad {
  u32 keys[4];
  u32 live;  // bit e: keys[e] belongs to the source
};

// Which of the elements 4 * quad .. + 3 lie in [begin, end).
__device__ __forceinline__ u32 topk_live(u32 quad, u32 begin, u32 end) {
  u32 live = 0;
#pragma unroll
  for (u32 e = 0; e < 4; ++e) live |= u32{4 * quad + e >= begin && 4 * quad + e < end} << e;
  return live;
}

// Elements are counted from a multiple of 16 bytes at or before the first score; the scores are [begin, end) of them.
struct TopkScores {
  const f32* origin;
  i32 first;  // the index of element 0; negative where the row starts later
  u32 begin, end;

  // scores: of index `first_index`.
  __device__ __forceinline__ static TopkScores of(const f32* scores, i64 first_index, i64 count) {
    const u32 begin = static_cast<u32>(reinterpret_cast<u64>(scores) / 4 % 4);
    return {scores - begin, static_cast<i32>(first_index) - static_cast<i32>(begin), begin,
            begin + static_cast<u32>(count)};
  }
  __device__ __forceinline__ u32 quads() const { return begin == end ? 0 : (end + 3) / 4; }
  __device__ __forceinline__ TopkQuad load(u32 quad) const {
    TopkQuad loaded{{}, topk_live(quad, begin, end)};
    if (loaded.live == 15) {
      const float4 scores = __ldg(reinterpret_cast<const float4*>(origin) + quad);
      loaded.keys[0] = topk_key(scores.x);
      loaded.keys[1] = topk_key(scores.y);
      loaded.keys[2] = topk_key(scores.z);
      loaded.keys[3] = topk_key(scores.w);
      return loaded;
    }
#pragma unroll
    for (u32 e = 0; e < 4; ++e)
      if (loaded.live >> e & 1) loaded.keys[e] = topk_key(origin[i64{quad} * 4 + e]);
    return loaded;
  }
  __device__ __forceinline__ i32 index(u32 quad, u32 e) const { return first + static_cast<i32>(4 * quad + e); }
};

// Keys of the same elements; what does not belong is there too, as anything.
struct TopkKeys {
  const uint4* keys;
  i32 first;
  u32 begin, end;

  __device__ __forceinline__ u32 quads() const { return begin == end ? 0 : (end + 3) / 4; }
  __device__ __forceinline__ TopkQuad load(u32 quad) const {
    const u32 live = topk_live(quad, begin, end);
    if (live == 0) return {{}, 0};
    const uint4 four = keys[quad];
    return {{four.x, four.y, four.z, four.w}, live};
  }
  __device__ __forceinline__ i32 index(u32 quad, u32 e) const { return first + static_cast<i32>(4 * quad + e); }
};

struct TopkList {
  const u32* keys;
  const i32* indices;
  u32 count;

  __device__ __forceinline__ u32 quads() const { return (count + 3) / 4; }
  __device__ __forceinline__ TopkQuad load(u32 quad) const {
    TopkQuad loaded{{}, topk_live(quad, 0, count)};
#pragma unroll
    for (u32 e = 0; e < 4; ++e)
      if (loaded.live >> e & 1) loaded.keys[e] = keys[4 * quad + e];
    return loaded;
  }
  __device__ __forceinline__ i32 index(u32 quad, u32 e) const { return indices[4 * quad + e]; }
};

// ---- State ----

// Chosen are the keys above `ceiling`, and of those in [floor, ceiling] the first `need` of all blocks together.
struct TopkCut {
  u32 need;
  u32 floor = 0, ceiling = 0xffffffffu;
  u32 own_above = 0, own_within = 0;  // keys of this block above ceiling, and in [floor, ceiling]
  bool done = false;                  // all in [floor, ceiling] are needed, or it is a single key
};

// How many keys of the blocks before this one lie above and within.
struct TopkPlace {
  u32 above, within;
};

template <int kThreads>
struct TopkStorage {
  static constexpr int kWarps = kThreads / 32;
  u32 counts[kTopkLevels][kTopkBins];
  u64 warp_sums[kWarps];
  u32 tile_sums[2][kTopkQuads * kWarps];
  u32 bin, above, within, own_above, own_within;  // what a level found
  u32 place[2];                                   // own_above and own_within of the cut

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < kTopkLevels * kTopkBins; i += kThreads) counts[0][i] = 0;
    __syncthreads();
  }
};

// Waits for all threads of all blocks; what they wrote to shared memory is seen.
__device__ __forceinline__ void topk_sync(u32 cluster) {
  if (cluster == 1) return __syncthreads();
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

// A word of the shared memory of block `rank`.
__device__ __forceinline__ u32 topk_peek(const u32* word, u32 rank) {
  return ptx::ld_shared_cluster_u32(ptx::mapa(ptx::smem_address(word), rank));
}

// ---- Count ----

// Counts the digits of a level among keys that share the cut's higher digits. Zeros, of which a ReLU makes many, are
// counted in a register, and a warp whose 128 keys share a bin adds them at once: else the adds would queue.
template <int kThreads, class Source>
__device__ __forceinline__ void topk_count(const Source& source, TopkStorage<kThreads>& storage, int level,
                                           const TopkCut& cut) {
  u32* counts = storage.counts[level];
  const int shift = topk_shift(level);
  const u32 digit = topk_digit(level), prefix = topk_prefix(level), quads = source.quads();
  const bool zero_counts = (kTopkKeyOfZero & prefix) == (cut.floor & prefix);
  u32 zeros = 0;
  for (u32 tile = 0; tile < quads; tile += kThreads * kTopkQuads) {
    TopkQuad loaded[kTopkQuads];
#pragma unroll
    for (int q = 0; q < kTopkQuads; ++q) loaded[q] = source.load(tile + q * kThreads + threadIdx.x);
#pragma unroll
    for (int q = 0; q < kTopkQuads; ++q) {
      u32 counted = 0;
      bool alike = true;
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const u32 key = loaded[q].keys[e];
        counted |= u32{(loaded[q].live >> e & 1) != 0 && ((key ^ cut.floor) & prefix) == 0} << e;
        alike &= ((key ^ loaded[q].keys[0]) >> shift) == 0;
      }
      const u32 bin = loaded[q].keys[0] >> shift & digit;
      const bool whole = counted == 15 && alike;
      if (__all_sync(0xffffffffu, whole && bin == __shfl_sync(0xffffffffu, bin, 0))) {
        if (threadIdx.x % 32 == 0) atomicAdd(&counts[bin], 128u);
        continue;
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const u32 key = loaded[q].keys[e];
        if ((counted >> e & 1) == 0) continue;
        if (key == kTopkKeyOfZero) ++zeros;
        else atomicAdd(&counts[key >> shift & digit], 1u);
      }
    }
  }
  zeros = __reduce_add_sync(0xffffffffu, zeros);
  if (zero_counts && zeros != 0 && threadIdx.x % 32 == 0) atomicAdd(&counts[kTopkKeyOfZero >> shift & digit], zeros);
}

// ---- Find ----

// Narrows the cut to the bin that holds the last key needed. Each thread sums its bins, best first, over the blocks.
template <int kThreads>
__device__ __forceinline__ void topk_find(TopkStorage<kThreads>& storage, int level, u32 cluster, TopkCut& cut) {
  constexpr int kOwn = kTopkBins / kThreads, kWarps = TopkStorage<kThreads>::kWarps;
  static_assert(kOwn * kThreads == kTopkBins && kWarps <= 32);
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  topk_sync(cluster);
  u64 pairs[kOwn], sum = 0;  // all blocks' count in the high half, this block's in the low one
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const u32* count = &storage.counts[level][kTopkBins - 1 - (threadIdx.x * kOwn + i)];
    u32 total = 0;
    if (cluster == 1) total = *count;
    else
      for (u32 rank = 0; rank < cluster; ++rank) total += topk_peek(count, rank);
    pairs[i] = u64{total} << 32 | *count;
    sum += pairs[i];
  }
  u64 before = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const u64 other = __shfl_up_sync(0xffffffffu, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) storage.warp_sums[warp] = before;
  __syncthreads();
  before -= sum;
  for (u32 w = 0; w < warp; ++w) before += storage.warp_sums[w];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const u32 above = static_cast<u32>(before >> 32), within = static_cast<u32>(pairs[i] >> 32);
    if (above < cut.need && cut.need <= above + within) {
      storage.bin = kTopkBins - 1 - (threadIdx.x * kOwn + i);
      storage.above = above;
      storage.within = within;
      storage.own_above = static_cast<u32>(before);
      storage.own_within = static_cast<u32>(pairs[i]);
    }
    before += pairs[i];
  }
  __syncthreads();
  const int shift = topk_shift(level);
  cut.floor |= storage.bin << shift;
  cut.ceiling = cut.floor | ((1u << shift) - 1);
  cut.need -= storage.above;
  cut.own_above += storage.own_above;
  cut.own_within = storage.own_within;
  cut.done = cut.need == storage.within || level == kTopkLevels - 1;
}

template <int kThreads>
__device__ __forceinline__ TopkPlace topk_place(TopkStorage<kThreads>& storage, u32 cluster, const TopkCut& cut) {
  TopkPlace place{0, 0};
  if (cluster == 1) return place;
  if (threadIdx.x == 0) {
    storage.place[0] = cut.own_above;
    storage.place[1] = cut.own_within;
  }
  topk_sync(cluster);
  for (u32 rank = 0; rank < ptx::cluster_ctarank(); ++rank) {
    place.above += topk_peek(&storage.place[0], rank);
    place.within += topk_peek(&storage.place[1], rank);
  }
  return place;
}

// ---- Visit ----

// Shows the visitor every key of the source: take(position, index, key) the chosen, leave(key) the others. One barrier
// for 8 keys a thread: keys above the cut and within it are counted together, in two halves of a word.
template <int kThreads, class Source, class Visitor>
__device__ __forceinline__ void topk_visit(const Source& source, TopkStorage<kThreads>& storage, const TopkCut& cut,
                                           TopkPlace place, Visitor& visitor) {
  constexpr int kWarps = TopkStorage<kThreads>::kWarps, kSums = kTopkQuads * kWarps;
  static_assert(32 % kWarps == 0 && kSums % 32 == 0 && kThreads * 4 * kTopkQuads < 65536);
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, quads = source.quads();
  u32 parity = 0;
  for (u32 tile = 0; tile < quads; tile += kThreads * kTopkQuads, parity ^= 1) {
    TopkQuad loaded[kTopkQuads];
#pragma unroll
    for (int q = 0; q < kTopkQuads; ++q) loaded[q] = source.load(tile + q * kThreads + threadIdx.x);
    u32 above = 0, within = 0, live = 0;      // bit 4q + e
    u32 above_counts = 0, within_counts = 0;  // byte q
#pragma unroll
    for (int q = 0; q < kTopkQuads; ++q) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const u32 key = loaded[q].keys[e];
        above |= u32{key > cut.ceiling} << (4 * q + e);
        within |= u32{key >= cut.floor && key <= cut.ceiling} << (4 * q + e);
      }
      live |= loaded[q].live << (4 * q);
      above_counts |= __popc(above & loaded[q].live << (4 * q)) << (8 * q);
      within_counts |= __popc(within & loaded[q].live << (4 * q)) << (8 * q);
    }
    // Sums over the lanes up to this one: at most 128 in a byte.
    u32 above_sums = above_counts, within_sums = within_counts;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const u32 other_above = __shfl_up_sync(0xffffffffu, above_sums, step);
      const u32 other_within = __shfl_up_sync(0xffffffffu, within_sums, step);
      if (lane >= step) {
        above_sums += other_above;
        within_sums += other_within;
      }
    }
    if (lane == 31) {
#pragma unroll
      for (int q = 0; q < kTopkQuads; ++q)
        storage.tile_sums[parity][q * kWarps + warp] =
            (above_sums >> (8 * q) & 255) | (within_sums >> (8 * q) & 255) << 16;
    }
    __syncthreads();
    above_sums -= above_counts;
    within_sums -= within_counts;
    // Every warp adds up the warps' sums for itself; a lane has one of each part.
    u32 tile_total = 0, part_sums[kSums / 32];
#pragma unroll
    for (int part = 0; part < kSums / 32; ++part) {
      const u32 own = storage.tile_sums[parity][part * 32 + lane];
      u32 sum = own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const u32 other = __shfl_up_sync(0xffffffffu, sum, step);
        if (lane >= step) sum += other;
      }
      part_sums[part] = tile_total + sum - own;
      tile_total += __shfl_sync(0xffffffffu, sum, 31);
    }
#pragma unroll
    for (int q = 0; q < kTopkQuads; ++q) {
      const u32 warp_before = __shfl_sync(0xffffffffu, part_sums[q * kWarps / 32], q * kWarps % 32 + warp);
      u32 above_before = place.above + (warp_before & 0xffff) + (above_sums >> (8 * q) & 255);
      u32 within_before = place.within + (warp_before >> 16) + (within_sums >> (8 * q) & 255);
#pragma unroll
      for (u32 e = 0; e < 4; ++e) {
        if ((live >> (4 * q + e) & 1) == 0) continue;
        const u32 is_above = above >> (4 * q + e) & 1, is_within = within >> (4 * q + e) & 1;
        if (is_above != 0 || (is_within != 0 && within_before < cut.need))
          visitor.take(above_before + min(within_before, cut.need),
                       source.index(tile + q * kThreads + threadIdx.x, e), loaded[q].keys[e]);
        else
          visitor.leave(loaded[q].keys[e]);
        above_before += is_above;
        within_before += is_within;
      }
    }
    place.above += tile_total & 0xffff;
    place.within += tile_total >> 16;
  }
  __syncthreads();
}

}  // namespace glm5::cuda
