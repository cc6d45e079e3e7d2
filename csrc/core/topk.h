// The order of a selection, written once for every machine.
//
// Keys are ranked by score descending, then index ascending: a total order, so that the chosen set is unique for any
// content. -0 equals +0; -inf comes after every finite score, NaN after -inf.
#pragma once

#include "core/fp8.h"
#include "core/glm5.h"

namespace glm5 {

// A score as an integer: the greater, the better; equal numbers where the scores are equal.
constexpr i32 kOrderOfNan = -0x7fffffff - 1;
constexpr i32 kOrderOfNegativeInfinity = -0x7f800001;

GLM5_INLINE i32 order_of(f32 score) {
  const i32 bits = static_cast<i32>(bits_of(score)), magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return kOrderOfNan;
  if (magnitude == 0) return 0;
  return bits < 0 ? ~magnitude : bits;
}

GLM5_INLINE f32 score_of(i32 order) {
  if (order == kOrderOfNan) return f32_of_bits(0x7fc00000);
  return f32_of_bits(order < 0 ? static_cast<u32>(~order) | 0x80000000u : static_cast<u32>(order));
}

// (worst chosen score) - (best score left out): 0 where the two are equal, +inf where only the second is NaN.
GLM5_INLINE f32 topk_margin(i32 worst, i32 best_left_out) {
  if (worst == best_left_out) return 0.0f;
  if (best_left_out == kOrderOfNan) return f32_of_bits(0x7f800000);
  return score_of(worst) - score_of(best_left_out);
}

// A set's fingerprint is the sum of these over its indices, mod 2^64: the splitmix64 generator's output for each. Sets
// that differ have different fingerprints but for one chance in 2^64.
GLM5_INLINE u64 topk_mix(i64 index) {
  u64 z = static_cast<u64>(index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The keys that a row may choose from, cut to what there is.
struct TopkWindow {
  i64 begin, end;
  GLM5_INLINE i64 size() const { return end - begin; }
};

GLM5_INLINE TopkWindow topk_window(i64 start, i64 end, i64 keys) {
  const i64 begin = smaller(larger(start, 0), keys);
  return {begin, larger(begin, smaller(end, keys))};
}

// A logical index as a slot of a paged cache; `table` is the sequence's row of the block table.
GLM5_INLINE i32 topk_slot(const i32* table, i64 index) {
  return static_cast<i32>(table[index / kPage] * kPage + index % kPage);
}

}  // namespace glm5
