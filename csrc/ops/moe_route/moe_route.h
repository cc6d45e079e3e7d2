// moe_route: the experts of every token and their weights, from the router's logits.
//
//   s = sigmoid(z) = 1 / (1 + exp(-z)), or softmax over the experts    c = s + bias
//   the topk experts of largest c within the topk_group groups of largest group score, in descending order
//   w_k = s_k / (sum_k s_k + 1e-20) * scale, or s_k * scale where weights are not normalised
//
// A group's score is the sum of its two largest c (its one c where it has but one). Ties go to the smaller id; NaN
// ranks below everything, of c and of group scores. The bias is for the choice alone. (DeepSeek-V3, arXiv 2412.19437,
// section 2.1.2.)
//
// Replay: a row of given ids is taken as it stands, in its order, with weights from the logits; a row of -1 is routed.
// On CUDA, where ids are not looked at first, a row with a negative id is routed, and an id that is too large makes the
// weights of its row NaN and counts for no expert.
//
// Sums, in f32: over slots k ascending, from 0. The softmax is exp(z - max) / total, where max passes over NaN; total
// has 32 chains, chain j over the experts j, j + 32, ... ascending, which are folded: chain j += chain j + 16, then by
// 8, 4, 2, 1. exp is core/exp.h's: the same bits on every machine.
//
// The gradient of the weights, g: with S = sum_k s_k + 1e-20 and a = sum_k g_k s_k (fused),
//   ds_k = (scale / S) * (g_k - a / S), or scale * g_k where weights are not normalised
//   sigmoid: dz = ds * (s * (1 - s)) for the chosen, 0 elsewhere
//   softmax: dz = s * (ds - sum_k ds_k s_k) (fused), where ds is 0 for experts not chosen
// An id that is no expert takes no part.
#pragma once

#include "core/exp.h"
#include "core/tensor.h"

namespace glm5 {

constexpr i64 kMostExperts = 1024, kMostChosen = 32;  // the latter of groups too
constexpr i64 kRouteChains = 32;
constexpr f32 kWeightFloor = 1e-20f;  // of the sum that normalises

// f32 as integers of the same order; -0 counts as 0, NaN as less than -inf.
constexpr i32 kNoKey = -0x7fffffff - 1, kNanKey = -0x7fffffff;

GLM5_INLINE i32 key_of(f32 x) {
  const i32 bits = static_cast<i32>(bits_of(x + 0.0f)), magnitude = bits & 0x7fffffff;
  const i32 key = bits ^ ((bits >> 31) & 0x7fffffff), is_nan = -i32{magnitude > 0x7f800000};
  return (key & ~is_nan) | (kNanKey & is_nan);
}
GLM5_INLINE f32 f32_of_key(i32 key) {  // NaN of kNanKey
  return f32_of_bits(static_cast<u32>(key ^ ((key >> 31) & 0x7fffffff)));
}

struct MoeRouteArgs {
  Tensor<const f32, 2> logits;            // [tokens, experts], unit stride along experts
  Tensor<const f32, 1> bias;              // [experts], or it does not exist
  Tensor<const u8, 2> replay_bytes;       // [tokens, topk]; at most one of the two exists
  Tensor<const i32, 2> replay;            // [tokens, topk]
  i64 n_group, topk_group;
  bool softmax, normalize;
  f32 scale;
  Tensor<i32, 2> experts;  // [tokens, topk]
  Tensor<f32, 2> weights;  // [tokens, topk]
  Tensor<i32, 1> counts;   // [experts]: how often each was chosen

  GLM5_INLINE bool replays() const { return replay_bytes.exists() || replay.exists(); }
  GLM5_INLINE i32 replayed(i64 token, i64 k) const {
    return replay.exists() ? *replay.at(token, k) : i32{*replay_bytes.at(token, k)};
  }
};

struct MoeRouteBwdArgs {
  Tensor<const f32, 2> d_weights;  // [tokens, topk]
  Tensor<const f32, 2> logits;     // [tokens, experts], unit stride along experts
  Tensor<const i32, 2> experts;    // [tokens, topk], distinct in a row
  bool softmax, normalize;
  f32 scale;
  Tensor<f32, 2> d_logits;  // [tokens, experts]
};

void moe_route_cpu(const MoeRouteArgs&);
void moe_route_cuda(const MoeRouteArgs&, void* stream);
void moe_route_bwd_cpu(const MoeRouteBwdArgs&);
void moe_route_bwd_cuda(const MoeRouteBwdArgs&, void* stream);

}  // namespace glm5
