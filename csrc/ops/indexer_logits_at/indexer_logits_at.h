// indexer_logits_at: the scores of indexer_logits at given keys only, and their gradient.
//
//   out[t, j] = score(t, indices[t, j]), the same bits as there (its header has the equation and the tree);
//   -inf where the index is no key: negative, or keys and beyond. An index may stand in a row more than once.
//
// The gradient, for g = d_out[t, j] * k_scales[s] (bf16: d_out[t, j]) at the key s = indices[t, j], d(h) as there:
//   a(h)       = d(h) > 0 ? g * weights[t, h] : 0
//   d_weights[t, h] = sum over j of g * relu(d(h)): 16 chains of fused multiply-adds, chain i over j = i, i + 16, ..
//                ascending; then chain i += chain i + 8 for i < 8, and so on with 4, 2, 1
//   d_q[t, h]   = sum over j of a(h) * k[s]: 64 j at a time a chain from zero, ascending; these are added ascending
//   d_k[s]      = sum over the (t, j) with indices[t, j] = s, ascending in t and then in j, of
//                (the chain over heads ascending, from zero, of a(h) * q[t, h]; 128 heads at a time)
// each rounded to its tensor's type once. relu'(0) = 0. What stands in d_out beside an absent key does not count. With
// e4m3 there is d_weights only. On CPU every instruction set gives the same bits.
// On sm_90a the tensor cores multiply a as the sum of two bf16 and add up d_q; d_weights has chains over j = i, i + 8,
// i + 64, .. (i % 16 < 8), and adds those of i and i ^ 1, of i and i ^ 2, of i and i ^ 4, and then over i / 16; d_k is
// an exact sum of contributions rounded to fixed point (bwd_sm90.cu). Everywhere the order is fixed by the indices
// alone: the same bits from every run and thread count.
#pragma once

#include "core/indexer.h"

namespace glm5 {

constexpr i64 kAtChunk = 64;   // j of a chain of d_q
constexpr i64 kAtChains = 16;  // of d_weights

struct IndexerLogitsAtArgs {
  IndexerOperands operands;      // dense keys; windows do not exist
  Tensor<const i32, 2> indices;  // [tokens, topk], row-major
  Tensor<f32, 2> out;            // [tokens, topk], row-major
  Tensor<u8, 1> workspace;       // indexer_logits_at_workspace_bytes()
};

struct IndexerLogitsAtBwdArgs {
  IndexerOperands operands;
  Tensor<const i32, 2> indices;  // [tokens, topk], row-major
  Tensor<const f32, 2> d_out;    // [tokens, topk], row-major
  Tensor<bf16, 3> d_q;           // [tokens, heads, dim], row-major; [0, 0, 0] with e4m3
  Tensor<bf16, 2> d_k;           // [keys, dim], row-major; [0, 0] with e4m3
  Tensor<f32, 2> d_weights;      // [tokens, heads], row-major
  Tensor<u8, 1> workspace;       // indexer_logits_at_bwd_workspace_bytes()
};

i64 indexer_logits_at_workspace_bytes(i64 heads, i64 dim);
i64 indexer_logits_at_bwd_workspace_bytes(i64 tokens, i64 topk, i64 keys, i64 heads, i64 dim);

// Of the gradient on CUDA; the forward pass needs none there.
GLM5_INLINE i64 indexer_logits_at_bwd_cuda_workspace_bytes(i64 keys) { return keys * (128 * 8 + 4) + 12; }

void indexer_logits_at_cpu(const IndexerLogitsAtArgs&);
void indexer_logits_at_cuda(const IndexerLogitsAtArgs&, void* stream);
void indexer_logits_at_bwd_cpu(const IndexerLogitsAtBwdArgs&);
void indexer_logits_at_bwd_cuda(const IndexerLogitsAtBwdArgs&, void* stream);

}  // namespace glm5
