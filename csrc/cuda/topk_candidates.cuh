// A team of threads and a buffer of candidates, (order, index) pairs in any sequence: where the best topk end, which
// candidates stay, and the chosen ones in ascending order. The order: core/topk.h.
//
// Every result is a function of the set of candidates alone; only places in the buffer depend on the schedule.
#pragma once

#include "core/topk.h"
#include "cuda/ptx/barrier.cuh"

namespace glm5::cuda {

constexpr int kCandidateBins = 2048;

template <int kThreads>
struct CandidateTeamStorage {
  u32 bins[kCandidateBins];  // of a histogram; or a bitmap of 65,536 indices
  u64 of_warps[kThreads / 32];
  int4 found;  // by one thread, for all
  int kept;
};

// Candidates in memory.
struct Candidates {
  i32* orders;
  i32* indices;
  int count;
};

// Chosen are those above `order`, and of those equal to it the ones whose index is below index_end.
struct CandidateCut {
  i32 order;
  u32 index_end;
  __device__ __forceinline__ bool chooses(i32 of, i32 index) const {
    return of > order || (of == order && static_cast<u32>(index) < index_end);
  }
};
constexpr CandidateCut kAllCandidates{kOrderOfNan, 0xffffffffu};

// All functions are called by all threads of the team, which then agree.
template <int kThreadsOf>
struct CandidateTeam {
  static constexpr int kThreads = kThreadsOf, kWarps = kThreads / 32, kBinsEach = kCandidateBins / kThreads;

  CandidateTeamStorage<kThreads>& smem;
  int thread, barrier;

  __device__ __forceinline__ void sync() const { ptx::bar_sync(barrier, kThreads); }

  // ---- sums and extremes over the team ----

  template <class T, class Combine>
  __device__ __forceinline__ T reduce(T value, Combine combine) const {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value = combine(value, __shfl_xor_sync(0xffffffff, value, mask));
    if (thread % 32 == 0) smem.of_warps[thread / 32] = static_cast<u64>(value);
    sync();
    value = static_cast<T>(smem.of_warps[0]);
    for (int warp = 1; warp < kWarps; ++warp) value = combine(value, static_cast<T>(smem.of_warps[warp]));
    sync();
    return value;
  }

  // The sum of the values of the threads before this one; `total` that of all.
  __device__ __forceinline__ int sum_before(int value, int& total) const {
    int through = value;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int lower = __shfl_up_sync(0xffffffff, through, step);
      if (thread % 32 >= step) through += lower;
    }
    if (thread % 32 == 31) smem.of_warps[thread / 32] = static_cast<u64>(through);
    sync();
    int before = through - value;
    total = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      const int of_warp = static_cast<int>(smem.of_warps[warp]);
      if (warp < thread / 32) before += of_warp;
      total += of_warp;
    }
    sync();
    return before;
  }

  // ---- the cut ----

  __device__ __forceinline__ void clear_bins() const {
    for (int bin = thread; bin < kCandidateBins; bin += kThreads) smem.bins[bin] = 0;
    sync();
  }

  // visit(order, index) for this thread's share; several loads are under way at once.
  template <class Visit>
  __device__ __forceinline__ void for_each(const Candidates& from, Visit visit) const {
    constexpr int kBatch = 4;
    for (int first = thread; first < from.count; first += kBatch * kThreads) {
      i32 orders[kBatch], indices[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int place = min(first + i * kThreads, from.count - 1);
        orders[i] = from.orders[place];
        indices[i] = from.indices[place];
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i * kThreads < from.count) visit(orders[i], indices[i]);
      }
    }
  }

  struct Digit {
    int value, before, count;  // before: in the bins that come first
  };

  // The bin in which the wanted-th lies; the first bin is the highest digit, or the lowest.
  template <bool kHighestFirst>
  __device__ __forceinline__ Digit find(int wanted) const {
    sync();
    const auto digit_of = [](int place) { return kHighestFirst ? kCandidateBins - 1 - place : place; };
    int sum = 0, total;
    for (int i = 0; i < kBinsEach; ++i) sum += smem.bins[digit_of(thread * kBinsEach + i)];
    int before = sum_before(sum, total);
    if (before < wanted && wanted <= before + sum) {
      int place = thread * kBinsEach;
      int count = smem.bins[digit_of(place)];
      while (before + count < wanted) {
        before += count;
        count = smem.bins[digit_of(++place)];
      }
      smem.found = {digit_of(place), before, count, 0};
    }
    sync();
    const int4 found = smem.found;
    return {found.x, found.y, found.z};
  }

  // The cut above which `wanted` of more candidates are, or up to `slack` more. Digits of 11, 11 and 10 bits of the
  // order, then of the index where more are equal than are wanted.
  __device__ __forceinline__ CandidateCut cut(const Candidates& from, int wanted, int slack) const {
    const auto shift_of = [](int pass) { return pass == 0 ? 21 : pass == 1 ? 10 : 0; };
    const auto is_of = [=](u32 value, u32 prefix, int pass) {  // equal in the digits before
      return pass == 0 || value >> shift_of(pass - 1) == prefix >> shift_of(pass - 1);
    };
    const auto digit = [=](u32 value, int pass) { return value >> shift_of(pass) & (pass == 2 ? 0x3ffu : 0x7ffu); };
    u32 prefix = 0;  // of orders as unsigned numbers
#pragma unroll 1
    for (int pass = 0; pass < 3; ++pass) {
      clear_bins();
      for_each(from, [&](i32 order, i32) {
        const u32 value = static_cast<u32>(order) ^ 0x80000000u;
        if (is_of(value, prefix, pass)) atomicAdd(&smem.bins[digit(value, pass)], 1);
      });
      const Digit found = find<true>(wanted);
      prefix |= static_cast<u32>(found.value) << shift_of(pass);
      wanted -= found.before;
      if (found.count - wanted <= slack) return {static_cast<i32>(prefix ^ 0x80000000u), 0xffffffffu};
    }
    const i32 tie = static_cast<i32>(prefix ^ 0x80000000u);
    u32 index = 0, step = 0;
#pragma unroll 1
    for (int pass = 0; pass < 3; ++pass) {
      clear_bins();
      for_each(from, [&](i32 order, i32 at) {
        if (order == tie && is_of(at, index, pass)) atomicAdd(&smem.bins[digit(at, pass)], 1);
      });
      const Digit found = find<false>(wanted);
      step = 1u << shift_of(pass);
      index |= static_cast<u32>(found.value) << shift_of(pass);
      wanted -= found.before;
      if (found.count == wanted) break;
    }
    return {tie, index + step};
  }

  // ---- what stays ----

  // Moves the chosen ones to `to`, which may be where they are; returns how many, and raises best_left_out.
  __device__ __forceinline__ int keep(const Candidates& from, const Candidates& to, const CandidateCut& cut,
                                      i32& best_left_out) const {
    constexpr int kBatch = 4;
    const int lane = thread % 32;
    if (thread == 0) smem.kept = 0;
    sync();
    for (int first = 0; first < from.count; first += kBatch * kThreads) {
      i32 orders[kBatch], indices[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int place = min(first + i * kThreads + thread, from.count - 1);
        orders[i] = from.orders[place];
        indices[i] = from.indices[place];
      }
      sync();  // what is written below lies before what is still to be read
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const bool exists = first + i * kThreads + thread < from.count;
        const bool stays = exists && cut.chooses(orders[i], indices[i]);
        const u32 votes = __ballot_sync(0xffffffff, stays);
        int place = 0;
        if (lane == 0 && votes != 0) place = atomicAdd(&smem.kept, __popc(votes));
        place = __shfl_sync(0xffffffff, place, 0) + __popc(votes & ((1u << lane) - 1));
        if (stays) to.orders[place] = orders[i], to.indices[place] = indices[i];
        if (exists && !stays) best_left_out = max(best_left_out, orders[i]);
      }
    }
    sync();
    const int kept = smem.kept;
    sync();
    return kept;
  }

  // store(place, index) for the chosen ones, indices ascending, all within [begin, end); returns how many. worst and
  // best_left_out are lowered and raised by this thread's share.
  template <class Store>
  __device__ __forceinline__ int emit(const Candidates& from, const CandidateCut& cut, i64 begin, i64 end, i32& worst,
                                      i32& best_left_out, Store store) const {
    constexpr int kRange = 32 * kCandidateBins, kWordsEach = kBinsEach;
    int emitted = 0;
    for (i64 base = begin; base < end; base += kRange) {
      clear_bins();
      for_each(from, [&](i32 order, i32 index) {
        const bool chosen = cut.chooses(order, index);
        const i64 place = index - base;
        if (chosen && place >= 0 && place < kRange) atomicOr(&smem.bins[place / 32], 1u << place % 32);
        if (chosen) worst = min(worst, order);
        if (!chosen) best_left_out = max(best_left_out, order);
      });
      sync();
      int own = 0, total;
      for (int i = 0; i < kWordsEach; ++i) own += __popc(smem.bins[thread * kWordsEach + i]);
      int place = emitted + sum_before(own, total);
      for (int i = 0; i < kWordsEach; ++i) {
        for (u32 word = smem.bins[thread * kWordsEach + i]; word != 0; word &= word - 1) {
          store(place++, static_cast<i32>(base + (thread * kWordsEach + i) * 32 + __ffs(word) - 1));
        }
      }
      emitted += total;
      sync();
    }
    return emitted;
  }
};

}  // namespace glm5::cuda
