// An exact top-k over a stream of scores: what the CPU kernels of topk_select and indexer_topk share.
//
//   TopkStream stream = topk_begin(buffer, keep, longest);   // buffer: topk_buffer_bytes(keep, longest), of one thread
//   topk_feed<Lanes>(stream, scores, count, first);          // again and again; indices ascend over all calls
//   const TopkChoice choice = topk_finish<Lanes>(stream, topk);
//   topk_store(choice, ...);                                 // indices ascending, -1 behind them, margin, fingerprint
//
// keep is topk, or topk + 1 where the margin is wanted: then the best key left out is still there at the end. longest
// is an upper bound of the keys fed. Keys outside a window are simply not fed. `scores` may be reused after a call.
// Lanes is the vector unit: avx2::TopkLanes (cpu/topk_avx2.h), avx512::TopkLanes (cpu/topk_avx512.h), or PlainLanes.
//
// How: 64 scores at a time are compared with a threshold that only rises, and what is above it becomes a candidate, in
// the order of indices. A full buffer is cut to its best `keep`, whose worst is the new threshold; later keys equal to
// it lose to those, so that a plateau of any length costs one cut. Memory is O(keep), whatever the content. With
// topk_guess() the first threshold comes from a sample of the row, and a typical row is cut once, at the end.
//
// Floats: feeding compares; it is right in the default mode of floats, and with denormals flushed if no score is
// denormal. topk_store() subtracts scores: call it in the default mode.
#pragma once

#include "core/topk.h"

namespace glm5::cpu {

constexpr i64 kTopkWord = 64;      // scores looked at together: a bit each
constexpr i64 kTopkSample = 1024;  // scores in the sample of topk_guess, in runs of 16
constexpr i64 kTopkRun = 16;       // a cache line
// Scores asked of memory ahead of the comparison: candidates come as surprises, and a processor that guessed wrong
// forgets the loads it had begun. Measured on Zen 3, 64 x 65536 from memory: 1.6 times the speed without.
constexpr i64 kTopkAhead = 2048;

struct TopkStream {
  i32* orders;   // of the candidates: order_of() their scores; from `converted` on still the scores' bits
  i32* indices;  // of the candidates, ascending
  i64 capacity;
  i64 keep;
  i64 count;
  i64 converted;
  f32 threshold;  // candidates are above it
  u64 takes_all;  // ~0: there is no threshold yet; everything is a candidate, NaN too
};

// Four times `keep`: a cut is paid for by three quarters of the buffer.
GLM5_INLINE i64 topk_capacity(i64 keep, i64 longest) {
  const i64 most = round_up(longest, kTopkWord);
  return keep >= most ? most : smaller(most, larger(round_up(4 * keep, kTopkWord), kTopkSample));
}

// A word's candidates may be written beyond the capacity before the buffer is cut; 64 bytes align it.
GLM5_INLINE i64 topk_buffer_bytes(i64 keep, i64 longest) {
  return round_up(2 * (topk_capacity(keep, longest) + kTopkWord) * i64{sizeof(i32)} + 64, 64);
}

GLM5_INLINE TopkStream topk_begin(u8* buffer, i64 keep, i64 longest) {
  const i64 capacity = topk_capacity(keep, longest);
  const u64 address = (reinterpret_cast<u64>(buffer) + 63) & ~u64{63};
  i32* orders = reinterpret_cast<i32*>(address);
  return {orders, orders + capacity + kTopkWord, capacity, keep, 0, 0, 0.0f, ~u64{0}};
}

// ---- The vector unit ----

// The portable one, and the description of what a Lanes offers. Counts of what works on whole vectors are multiples of
// kWidth; what is left over goes through here.
struct PlainLanes {
  static constexpr i64 kWidth = 1;

  // Bit i: scores[i] > threshold, for 64 scores.
  GLM5_INLINE static u64 above(const f32* scores, f32 threshold) {
    u64 bits = 0;
    for (i64 i = 0; i < kTopkWord; ++i) bits |= u64{scores[i] > threshold} << i;
    return bits;
  }
  // Bits of scores to their orders, in place.
  GLM5_INLINE static void convert(i32* orders, i64 count) {
    for (i64 i = 0; i < count; ++i) orders[i] = order_of(f32_of_bits(static_cast<u32>(orders[i])));
  }
  GLM5_INLINE static i64 count_at_least(const i32* orders, i64 count, i32 bound) {
    i64 found = 0;
    for (i64 i = 0; i < count; ++i) found += orders[i] >= bound;
    return found;
  }
  // Lowers `least` and raises `most` to what is there.
  GLM5_INLINE static void extremes(const i32* orders, i64 count, i32& least, i32& most) {
    for (i64 i = 0; i < count; ++i) {
      least = orders[i] < least ? orders[i] : least;
      most = orders[i] > most ? orders[i] : most;
    }
  }
  // Moves the candidates of [begin, end) that are at least `bound` to `to` and what follows; returns the end. to <=
  // begin. Whole vectors may be written, up to the end of the one that was read.
  GLM5_INLINE static i64 keep_at_least(i32* orders, i32* indices, i64 begin, i64 end, i32 bound, i64 to) {
    for (i64 i = begin; i < end; ++i) {
      orders[to] = orders[i];
      indices[to] = indices[i];
      to += orders[i] >= bound;
    }
    return to;
  }
  // All 64 scores as candidates; first: the index of scores[0].
  GLM5_INLINE static void copy(const f32* scores, i32 first, i32* orders, i32* indices) {
    for (i64 i = 0; i < kTopkWord; ++i) {
      orders[i] = static_cast<i32>(bits_of(scores[i]));
      indices[i] = first + static_cast<i32>(i);
    }
  }
};

// ---- The cut: which candidates are the best `keep` ----

// Kept are the candidates before `place` that are at least `bound`, and those from it on that are above it.
struct TopkCut {
  i32 bound;
  i64 place;
};

// Halves the range of orders until exactly `keep` lie in its upper part, or a single order is left whose candidates
// do not all fit: then the first of them are taken. 1 <= keep < count. At most 33 passes, about 13 for random scores.
template <class Lanes>
GLM5_INLINE TopkCut topk_cut(const i32* orders, i64 count, i64 keep) {
  const i64 whole = count / Lanes::kWidth * Lanes::kWidth;
  i32 least = orders[0], most = orders[0];
  Lanes::extremes(orders, whole, least, most);
  PlainLanes::extremes(orders + whole, count - whole, least, most);
  // At least low: count_low >= keep candidates. At least high: count_high < keep.
  i64 low = least, high = i64{most} + 1, count_high = 0;
  while (high - low > 1) {
    const i64 middle = low + (high - low) / 2;
    const i32 bound = static_cast<i32>(middle);
    const i64 found =
        Lanes::count_at_least(orders, whole, bound) + PlainLanes::count_at_least(orders + whole, count - whole, bound);
    if (found == keep) return {bound, count};
    if (found > keep) {
      low = middle;
    } else {
      high = middle;
      count_high = found;
    }
  }
  i64 place = 0;
  for (i64 equal = 0; equal < keep - count_high; ++place) equal += orders[place] == low;
  return {static_cast<i32>(low), place};
}

template <class Lanes>
GLM5_INLINE i64 topk_keep_range(i32* orders, i32* indices, i64 begin, i64 end, i32 bound, i64 to) {
  const i64 whole = begin + (end - begin) / Lanes::kWidth * Lanes::kWidth;
  to = Lanes::keep_at_least(orders, indices, begin, whole, bound, to);
  return PlainLanes::keep_at_least(orders, indices, whole, end, bound, to);
}

// Orders end at +inf, so bound + 1 is one.
template <class Lanes>
GLM5_INLINE i64 topk_keep(const TopkStream& stream, const TopkCut& cut) {
  const i64 to = topk_keep_range<Lanes>(stream.orders, stream.indices, 0, cut.place, cut.bound, 0);
  return topk_keep_range<Lanes>(stream.orders, stream.indices, cut.place, stream.count, cut.bound + 1, to);
}

// ---- The stream ----

// From now on candidates are those above the score of this order, unless that is NaN's.
GLM5_INLINE void topk_raise(TopkStream& stream, i32 order) {
  if (order < kOrderOfNegativeInfinity) return;
  stream.threshold = score_of(order);
  stream.takes_all = 0;
}

template <class Lanes>
GLM5_INLINE void topk_convert(TopkStream& stream) {
  i32* orders = stream.orders + stream.converted;
  const i64 count = stream.count - stream.converted, whole = count / Lanes::kWidth * Lanes::kWidth;
  Lanes::convert(orders, whole);
  PlainLanes::convert(orders + whole, count - whole);
  stream.converted = stream.count;
}

// Cuts the candidates to the best `keep`.
template <class Lanes>
GLM5_INLINE void topk_shrink(TopkStream& stream) {
  if (stream.count <= stream.keep) return;
  topk_convert<Lanes>(stream);
  const TopkCut cut = topk_cut<Lanes>(stream.orders, stream.count, stream.keep);
  stream.count = stream.converted = topk_keep<Lanes>(stream, cut);
  topk_raise(stream, cut.bound);  // what comes later and equals it loses to all that are kept
}

// The scores whose bits are set become candidates. Three are written unasked, so that the processor need not guess
// how many there are where there are few.
GLM5_INLINE void topk_append(TopkStream& stream, u64 bits, const f32* scores, i32 first) {
  constexpr u64 kLast = u64{1} << (kTopkWord - 1);
  i64 count = stream.count;
#pragma GCC unroll 3
  for (int step = 0; step < 3; ++step) {
    const i32 i = __builtin_ctzll(bits | kLast);
    stream.orders[count] = static_cast<i32>(bits_of(scores[i]));
    stream.indices[count] = first + i;
    count += bits != 0;
    bits &= bits - 1;
  }
  for (; bits != 0; bits &= bits - 1) {
    const i32 i = __builtin_ctzll(bits);
    stream.orders[count] = static_cast<i32>(bits_of(scores[i]));
    stream.indices[count++] = first + i;
  }
  stream.count = count;
}

// scores[i] is the score of index first + i.
template <class Lanes>
GLM5_INLINE void topk_feed(TopkStream& stream, const f32* scores, i64 count, i64 first) {
  alignas(64) f32 rest[kTopkWord];
  for (i64 i = 0; i < count; i += kTopkWord) {
    const f32* word = scores + i;
    u64 live = ~u64{0};
    if (count - i < kTopkWord) {
      live = (u64{1} << (count - i)) - 1;
      __builtin_memset(rest, 0, sizeof(rest));
      __builtin_memcpy(rest, word, (count - i) * sizeof(f32));
      word = rest;
    }
    for (i64 line = 0; line < kTopkWord; line += kTopkRun) __builtin_prefetch(scores + i + kTopkAhead + line);
    const u64 bits = (Lanes::above(word, stream.threshold) | stream.takes_all) & live;
    if (bits == 0) continue;
    if (stream.count + kTopkWord > stream.capacity) topk_shrink<Lanes>(stream);
    if (bits == ~u64{0}) {
      Lanes::copy(word, static_cast<i32>(first + i), stream.orders + stream.count, stream.indices + stream.count);
      stream.count += kTopkWord;
    } else {
      topk_append(stream, bits, word, static_cast<i32>(first + i));
    }
  }
}

// Sets the first threshold of a stream to which `count` scores are about to be fed, from a sample: so low that a row
// in random order has `keep` keys above it but for a chance of about one in a thousand. Afterwards the caller looks:
// fewer than `keep` candidates mean that the guess was wrong, and topk_restart() and the scores are needed again.
template <class Lanes>
GLM5_INLINE void topk_guess(TopkStream& stream, const f32* scores, i64 count) {
  if (count <= stream.capacity) return;  // all fit
  const i64 runs = kTopkSample / kTopkRun, step = count / runs;
  for (i64 run = 0; run < runs; ++run)
    __builtin_memcpy(stream.orders + run * kTopkRun, scores + run * step, kTopkRun * sizeof(f32));
  const i64 expected = kTopkSample * stream.keep / count;
  i64 deviation = 0;
  while ((deviation + 1) * (deviation + 1) <= expected) ++deviation;
  const i64 rank = expected + 3 * deviation + 3;
  if (rank >= kTopkSample) return;
  Lanes::convert(stream.orders, kTopkSample);
  // What equals the bound is wanted too. The order below 0 is that of -0, which equals it.
  const i32 bound = topk_cut<Lanes>(stream.orders, kTopkSample, rank).bound;
  if (bound > kOrderOfNegativeInfinity) topk_raise(stream, bound == 0 ? -2 : bound - 1);
}

GLM5_INLINE void topk_restart(TopkStream& stream) {
  stream.count = stream.converted = 0;
  stream.takes_all = ~u64{0};
}

// ---- The end ----

struct TopkChoice {
  const i32* indices;  // ascending; in the stream's buffer
  const i32* orders;   // of these
  i64 count;
  bool leaves_out;  // the two below mean something where keep was topk + 1
  i32 worst, best_left_out;
};

// The worst that is at least `bound`, and the best below it.
GLM5_INLINE void topk_sides(const i32* orders, i64 count, i32 bound, i32& worst, i32& best_left_out) {
  for (i64 i = 0; i < count; ++i) {
    const i32 order = orders[i], above = order >= bound ? order : 0x7fffffff;
    const i32 below = order >= bound ? kOrderOfNan : order;
    worst = above < worst ? above : worst;
    best_left_out = below > best_left_out ? below : best_left_out;
  }
}

// The best min(topk, keys fed) candidates. topk <= keep.
template <class Lanes>
GLM5_INLINE TopkChoice topk_finish(TopkStream& stream, i64 topk) {
  topk_convert<Lanes>(stream);
  if (stream.count <= topk) return {stream.indices, stream.orders, stream.count, false, 0, 0};
  const TopkCut cut = topk_cut<Lanes>(stream.orders, stream.count, topk);
  i32 worst = 0x7fffffff, best_left_out = kOrderOfNan;
  if (stream.keep > topk) {
    topk_sides(stream.orders, cut.place, cut.bound, worst, best_left_out);
    topk_sides(stream.orders + cut.place, stream.count - cut.place, cut.bound + 1, worst, best_left_out);
  }
  stream.count = stream.converted = topk_keep<Lanes>(stream, cut);
  return {stream.indices, stream.orders, stream.count, true, worst, best_left_out};
}

// Where a row's results go.
struct TopkRow {
  i32* indices;  // [topk]
  i64 topk;
  const i32* table;  // the sequence's row of the block table, to store slots; or null, to store indices
  f32* margin;       // or null
  i64* fingerprint;  // or null
};

GLM5_INLINE void topk_store(const TopkChoice& choice, const TopkRow& row) {
  if (row.table != nullptr) {
    for (i64 i = 0; i < choice.count; ++i) row.indices[i] = topk_slot(row.table, choice.indices[i]);
  } else {
    __builtin_memcpy(row.indices, choice.indices, choice.count * sizeof(i32));
  }
  for (i64 i = choice.count; i < row.topk; ++i) row.indices[i] = -1;
  if (row.margin != nullptr)
    *row.margin = choice.leaves_out ? topk_margin(choice.worst, choice.best_left_out) : f32_of_bits(0x7f800000);
  if (row.fingerprint != nullptr) {
    u64 sum = 0;
    for (i64 i = 0; i < choice.count; ++i) sum += topk_mix(choice.indices[i]);
    *row.fingerprint = static_cast<i64>(sum);
  }
}

}  // namespace glm5::cpu
