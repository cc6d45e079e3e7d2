// moe_route on the CPU: a token at a time. Scores are made in vectors (Lanes: cpu/avx2.h, cpu/avx512.h, core/exp.h).
// The choice works on integers of the same order: the maxima of pieces of 32 experts are kept, so that each of the topk
// rounds looks into one piece only. Its loops over 32 numbers the compiler turns into vectors.
#pragma once

#include "cpu/float_environment.h"
#include "ops/moe_route/moe_route.h"

namespace glm5::moe_route {
namespace {

constexpr i64 kPiece = 32;
static_assert(kMostExperts % kPiece == 0 && kRouteChains == kPiece);

// One row. Behind the experts stand numbers that change nothing, up to whole pieces.
struct Row {
  alignas(64) f32 scores[kMostExperts];
  alignas(64) i32 keys[kMostExperts];
  i64 tops[kMostExperts / kPiece];  // of each piece (see top_of)
};

template <class Lanes>
GLM5_INLINE void score_by_sigmoid(f32* scores, i64 padded) {
  const auto one = Lanes::constant(1.0f);
  for (i64 i = 0; i < padded; i += Lanes::kCount)
    Lanes::store(scores + i, one / (one + exp_of<Lanes>(Lanes::zero() - Lanes::load(scores + i))));
}

template <class Lanes>
GLM5_INLINE void score_by_softmax(f32* scores, i64 padded) {
  alignas(64) f32 chains[kRouteChains];
  f32 most = -__builtin_inff();
  for (i64 i = 0; i < padded; ++i) most = scores[i] > most ? scores[i] : most;
  for (i64 i = 0; i < padded; i += Lanes::kCount)
    Lanes::store(scores + i, exp_of<Lanes>(Lanes::load(scores + i) - Lanes::broadcast(most)));
  for (i64 j = 0; j < kRouteChains; ++j) chains[j] = scores[j];
  for (i64 i = kRouteChains; i < padded; i += kRouteChains)
    for (i64 j = 0; j < kRouteChains; ++j) chains[j] += scores[i + j];
  for (i64 half = kRouteChains / 2; half >= 1; half /= 2)
    for (i64 j = 0; j < half; ++j) chains[j] += chains[j + half];
  for (i64 i = 0; i < padded; i += Lanes::kCount)
    Lanes::store(scores + i, Lanes::load(scores + i) / Lanes::broadcast(chains[0]));
}

template <class Lanes>
GLM5_INLINE void score(const f32* logits, i64 experts, bool softmax, f32* scores) {
  const i64 padded = round_up(experts, kPiece);
  __builtin_memcpy(scores, logits, 4 * experts);
  for (i64 e = experts; e < padded; ++e) scores[e] = -__builtin_inff();
  if (softmax)
    score_by_softmax<Lanes>(scores, padded);
  else
    score_by_sigmoid<Lanes>(scores, padded);
}

GLM5_INLINE i32 largest_of(const i32* keys, i64 count) {
  i32 largest = kNoKey;
  for (i64 i = 0; i < count; ++i) largest = keys[i] > largest ? keys[i] : largest;
  return largest;
}

GLM5_INLINE i32 first_of_piece(const i32* keys, i32 wanted) {
  i32 first = kPiece;
  for (i32 i = 0; i < kPiece; ++i) {
    const i32 place = keys[i] == wanted ? i : static_cast<i32>(kPiece);
    first = place < first ? place : first;
  }
  return first;
}

// The largest key of a piece and, below it, what is greater for smaller ids: of two such numbers the greater one is the
// better choice.
GLM5_INLINE i64 top_of(const i32* keys, i64 piece) {
  const i32 key = largest_of(keys + piece * kPiece, kPiece);
  const i64 expert = piece * kPiece + first_of_piece(keys + piece * kPiece, key);
  return i64{key} * (i64{1} << 32) + (kMostExperts - expert);
}

GLM5_INLINE i64 first_of(const i32* keys, i32 wanted) {
  i64 first = 0;
  while (keys[first] != wanted) ++first;
  return first;
}

// The sum of the two largest.
GLM5_INLINE f32 group_score(i32* keys, i64 size) {
  const i32 largest = largest_of(keys, size);
  if (size == 1) return f32_of_key(largest);
  const i64 place = first_of(keys, largest);
  keys[place] = kNoKey;
  const f32 sum = f32_of_key(largest) + f32_of_key(largest_of(keys, size));
  keys[place] = largest;
  return sum;
}

GLM5_INLINE void drop_groups(const MoeRouteArgs& args, i32* keys) {
  const i64 size = args.logits.shape[1] / args.n_group;
  i32 groups[kMostChosen];
  bool kept[kMostChosen] = {};
  for (i64 g = 0; g < args.n_group; ++g) groups[g] = key_of(group_score(keys + g * size, size));
  for (i64 r = 0; r < args.topk_group; ++r) {
    const i64 best = first_of(groups, largest_of(groups, args.n_group));
    kept[best] = true;
    groups[best] = kNoKey;
  }
  for (i64 g = 0; g < args.n_group; ++g)
    for (i64 e = g * size; e < (kept[g] ? g * size : (g + 1) * size); ++e) keys[e] = kNoKey;
}

GLM5_INLINE void choose(const MoeRouteArgs& args, Row& row, i64 token) {
  const i64 experts = args.logits.shape[1], pieces = ceil_div(experts, kPiece);
  if (const f32* bias = args.bias.data)
    for (i64 e = 0; e < experts; ++e) row.keys[e] = key_of(row.scores[e] + bias[e]);
  else
    for (i64 e = 0; e < experts; ++e) row.keys[e] = key_of(row.scores[e]);
  for (i64 e = experts; e < pieces * kPiece; ++e) row.keys[e] = kNoKey;
  if (args.topk_group < args.n_group) drop_groups(args, row.keys);
  for (i64 p = 0; p < pieces; ++p) row.tops[p] = top_of(row.keys, p);
  for (i64 k = 0; k < args.experts.shape[1]; ++k) {
    i64 best = row.tops[0];
    for (i64 p = 1; p < pieces; ++p) best = larger(best, row.tops[p]);
    const i32 expert = kMostExperts - static_cast<i32>(best & 0xffffffff);
    *args.experts.at(token, k) = expert;
    row.keys[expert] = kNoKey;
    row.tops[expert / kPiece] = top_of(row.keys, expert / kPiece);
  }
}

GLM5_INLINE void weigh(const MoeRouteArgs& args, const Row& row, i64 token) {
  const i64 topk = args.experts.shape[1];
  f32 sum = 0;
  for (i64 k = 0; k < topk; ++k) sum += row.scores[*args.experts.at(token, k)];
  sum += kWeightFloor;
  for (i64 k = 0; k < topk; ++k) {
    const f32 score = row.scores[*args.experts.at(token, k)];
    *args.weights.at(token, k) = (args.normalize ? score / sum : score) * args.scale;
  }
}

template <class Lanes>
void run(const MoeRouteArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 topk = args.experts.shape[1];
  Row row;
  for (i64 token = begin; token < end; ++token) {
    score<Lanes>(args.logits.at(token, 0), args.logits.shape[1], args.softmax, row.scores);
    if (args.replays() && args.replayed(token, 0) >= 0)
      for (i64 k = 0; k < topk; ++k) *args.experts.at(token, k) = args.replayed(token, k);
    else
      choose(args, row, token);
    weigh(args, row, token);
  }
  cpu::restore_floats(before);
}

// What the slots of a row hold, as far as they hold an expert.
struct Chosen {
  i64 count = 0;
  i64 experts[kMostChosen];
  f32 scores[kMostChosen], d_weights[kMostChosen], d_scores[kMostChosen];

  GLM5_INLINE void differentiate(bool normalize, f32 scale) {
    f32 sum = 0, dot = 0;
    for (i64 k = 0; k < count; ++k) {
      sum += scores[k];
      dot = __builtin_fmaf(d_weights[k], scores[k], dot);
    }
    sum += kWeightFloor;
    for (i64 k = 0; k < count; ++k)
      d_scores[k] = normalize ? scale / sum * (d_weights[k] - dot / sum) : scale * d_weights[k];
  }
};

template <class Lanes>
void differentiate(const MoeRouteBwdArgs& args, i64 token, Row& row) {
  const i64 experts = args.logits.shape[1];
  f32* d_logits = args.d_logits.at(token, 0);
  Chosen chosen;
  if (args.softmax) score<Lanes>(args.logits.at(token, 0), experts, true, row.scores);
  for (i64 k = 0; k < args.experts.shape[1]; ++k) {
    const i32 expert = *args.experts.at(token, k);
    if (expert < 0 || expert >= experts) continue;
    const f32 z = *args.logits.at(token, expert);
    chosen.experts[chosen.count] = expert;
    chosen.scores[chosen.count] = args.softmax ? row.scores[expert] : 1.0f / (1.0f + exp_of<ScalarLanes>(-z));
    chosen.d_weights[chosen.count++] = *args.d_weights.at(token, k);
  }
  chosen.differentiate(args.normalize, args.scale);
  f32 inner = 0;
  if (args.softmax)
    for (i64 k = 0; k < chosen.count; ++k) inner = __builtin_fmaf(chosen.d_scores[k], chosen.scores[k], inner);
  if (args.softmax)
    for (i64 e = 0; e < experts; ++e) d_logits[e] = row.scores[e] * (0.0f - inner);
  else
    __builtin_memset(d_logits, 0, 4 * experts);
  for (i64 k = 0; k < chosen.count; ++k) {
    const f32 s = chosen.scores[k], d = chosen.d_scores[k];
    d_logits[chosen.experts[k]] = args.softmax ? s * (d - inner) : d * (s * (1.0f - s));
  }
}

template <class Lanes>
void run_backward(const MoeRouteBwdArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  Row row;
  for (i64 token = begin; token < end; ++token) differentiate<Lanes>(args, token, row);
  cpu::restore_floats(before);
}

}  // namespace
}  // namespace glm5::moe_route
