// indexer_logits: out[t, s] = k_scales[s] * sum over h of weights[t, h] * relu(sum over dim of q[t, h] * k[s])
//
// for s in the window [start, end) of token t; -inf outside it. q and k are e4m3, with a scale for every key, or bf16,
// without scales. The paged form takes its keys from a cache; s counts the keys of a sequence. Keys outside a token's
// window are never multiplied into its row, whatever they hold. An empty window gives a row of -inf. NaN spreads to the
// scores that it takes part in; so does a product of -inf, whose relu is NaN here.
//
// The tree of a score, the same for every number of tokens, window, tile, thread count and schedule, for dense and
// paged keys, and in every op that scores:
//   d(h)  = sum over dim of q * k. On CPU: steps of 32 of dim (padded with zeros), ascending from zero; a step is
//           (even + odd), chains of fused multiply-adds over its even and odd members from zero. This is AMX's
//           TDPBF16PS; as there, subnormal numbers count as zero, in all of the score. e4m3 is exact in bf16.
//           On sm_90a: wgmma of 32 (e4m3) or 16 (bf16) of dim, ascending, in one accumulator.
//   r(h)  = d + |d|: twice relu(d), exact.
//   c_j   = the chain over the heads h with (h / 2) % 4 = j, ascending from zero, of fma(weights[t, h], r(h), c_j), for
//           j = 0 .. 3. On sm_90a these are the heads that one lane of a quad holds.
//   score = ((c_0 + c_1) + (c_2 + c_3)) * scale, where scale = 0.5 * k_scales[s] (e4m3) or 0.5 (bf16).
// Every instruction set of the CPU gives the same bits; CUDA differs from it in d only.
//
// The gradient, for dense keys. g(t, s) = d_out[t, s] * k_scales[s] (bf16: d_out[t, s]) inside the windows; d_out
// outside them is not read. relu' is 1 where d > 0, else 0. The trees, as independent of everything as the score's:
//   d_weights[t, h] = 0.5 * P, where P adds p_0 .. p_15 by halves (p_j + p_(j + 8), then 4, 2, 1), and p_j is the chain
//                     over the keys s % 16 = j of the window, ascending from zero, of fma(g, r, p_j).
//   m(t, h, s)      = d > 0 ? g * weights[t, h] : 0
//   d_q[t, h]       = bf16 of the sum over blocks of 128 keys, ascending from zero; a block's part is the chain over
//                     its keys in the window, ascending from zero, of fma(m, k[s], part).
//   d_k[s]          = bf16 of the sum over the tokens whose window has s, ascending from zero; a token's part is the
//                     chain over the heads, ascending from zero, of fma(m, q[t, h], part).
// With e4m3 there is d_weights only. On sm_90a the tensor core multiplies m as the sum of two bf16 and gives the parts;
// blocks are of 64 keys; d_weights has a chain for each i < 64 with i % 16 < 8, over the keys s % 64 = i and i + 8 in
// turns, and adds those of i and i ^ 1, of i and i ^ 2, of i and i ^ 4, and then over i / 16 ascending.
#pragma once

#include "core/indexer.h"

namespace glm5 {

struct IndexerLogitsArgs {
  IndexerOperands operands;
  Tensor<f32, 2> out;       // [tokens, keys], unit stride along keys
  Tensor<u8, 1> workspace;  // indexer_logits_workspace_bytes()
};

// Scratch of one call on the CPU; the CUDA kernels need none.
i64 indexer_logits_workspace_bytes(i64 heads, i64 dim);

// Both for dense and for paged keys.
void indexer_logits_cpu(const IndexerLogitsArgs&);
void indexer_logits_cuda(const IndexerLogitsArgs&, void* stream);

struct IndexerLogitsBwdArgs {
  IndexerOperands operands;    // dense
  Tensor<const f32, 2> d_out;  // [tokens, keys]
  Tensor<bf16, 3> d_q;         // [tokens, heads, dim]; [0, 0, 0] with e4m3
  Tensor<bf16, 2> d_k;         // [keys, dim]; [0, 0] with e4m3
  Tensor<f32, 2> d_weights;    // [tokens, heads]
  Tensor<u8, 1> workspace;     // indexer_logits_bwd_workspace_bytes()
};

i64 indexer_logits_bwd_workspace_bytes(i64 heads, i64 dim);  // on the CPU; none on CUDA
void indexer_logits_bwd_cpu(const IndexerLogitsBwdArgs&);
void indexer_logits_bwd_cuda(const IndexerLogitsBwdArgs&, void* stream);

}  // namespace glm5
