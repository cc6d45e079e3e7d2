// sparse_mla_attention: attention of every head over the keys that a token names, and its gradient. A key's first v_dim
// columns are its value.
//
//   present(t) = the places j of indices[t], ascending, with 0 <= indices[t, j] < keys and j < topk_length[t];
//                n of them, numbered i = 0, 1, ..; a key may stand in a row more than once and then counts as often
//   s(i)  = scale * (q[t, h] . kv[key i])
//   lse   = log sum over i of exp(s(i))                     natural; -inf without a present place
//   out   = factor * sum over i of exp(s(i) - lse) * v(i)   0 without a present place
//   factor = 1 / (1 + exp(sink[h] - lse)), or 1 without a sink: the sink does not enter lse
//   probabilities[t, j] = sum over h of exp(s(i) - lse), before the sink, at the place j of i; 0 at absent places
//
// sparse_mla_decode is the same over the rows of a latent cache, as mla_cache_gather reads them: its bits are those of
// sparse_mla_attention over these rows. With schedule "fast" it has a tree of its own, decode.h.
//
// What is absent is never read. NaN in a key spreads to the heads of the tokens that name it and no further.
//
// The tree, on CPU (every instruction set, batch, thread count and shard of heads gives the same bits). It knows only
// the present places, so that a row's bits do not depend on where absent ones stand, nor on topk:
//   d(i)   = the tree of gemm for bf16 over qk_dim: steps of 32, each a chain over even k plus a chain over odd k
//   m      = the largest s(i); NaN does not count
//   p(i)   = exp(s(i) - m), by cpu/exp.h
//   l      = 16 chains of p, chain c over i = c, c + 16, ..; then chain c += chain c + 8 for c < 8, and so with 4, 2, 1
//   o      = the tree of gemm over i, of bf16(p(i)) and v(i): steps of 32 i ascending
//   lse    = m + log(l);  out = bf16(o * ((1 / l) * factor))
//   probabilities = a chain of fused multiply-adds over heads ascending, of p(i) and 1 / l
// Subnormal numbers count as zero. Scores of all places are at hand before the first exp, so nothing is rescaled on
// the way: a maximum that grows block by block would move all of o through the L2 cache once for every 64 keys, which
// costs a tile unit as much time as the products themselves. It costs heads * topk f32 of scratch for each thread.
//
// The gradient, for d_out and d_lse, with P = exp(s - lse) and W = factor * P:
//   delta  = sum over v_dim of out * d_out: 16 chains of fused multiply-adds, folded as l
//   dp(i)  = d_out . v(i), as d(i) over v_dim
//   e(i)   = fma(factor, dp(i) - delta, d_lse);  ds(i) = (P(i) * e(i)) * scale
//   d_q    = the tree of gemm over i, of bf16(ds(i)) and kv[key i]
//   d_kv[s] = the sum over the (t, i) with key s, ascending in t and then in i, of: the tree of gemm over heads of
//             bf16(ds(h)) and q[t, h], continued, for the first v_dim columns, over heads of bf16(W(h)) and d_out[t, h]
//   d_sink[h] = -sum over t ascending, in f64, of (1 - factor) * delta, where t has a present place
// rounded to the type of their tensors once.
#pragma once

#include "core/mla_cache.h"

namespace glm5 {

struct SparseMlaAttentionArgs {
  Tensor<const bf16, 3> q;       // [tokens, heads, qk_dim], unit stride along qk_dim
  Tensor<const bf16, 2> kv;      // [keys, qk_dim], unit stride along qk_dim
  Tensor<const i32, 2> indices;  // [tokens, topk], row-major
  f32 scale;
  Tensor<const i32, 1> topk_length;  // [tokens], or absent
  Tensor<const f32, 1> sink;         // [heads], or absent
  Tensor<bf16, 3> out;               // [tokens, heads, v_dim], row-major
  Tensor<f32, 2> lse;                // [tokens, heads], row-major
  Tensor<f32, 2> probabilities;      // [tokens, topk], row-major; [0, topk]: not wanted
  Tensor<u8, 1> workspace;           // sparse_mla_attention_workspace_bytes()

  // sparse_mla_decode: keys lie in the pages of a cache, and kv is not read. An index is a position of the token's
  // sequence, or, without a block table, a slot of the cache.
  bool is_paged = false;
  MlaCache cache = {};                    // only read
  Tensor<const i32, 2> block_table = {};  // [sequences, max_pages], unit stride along the second; or absent
  Tensor<const i32, 1> sequences = {};    // [tokens], a row of block_table; or absent

  // The slot of an index, -1 where there is none.
  GLM5_INLINE i64 slot_of(i64 token, i64 index) const {
    if (index < 0 || !block_table.exists()) return index < cache.slots() ? index : -1;
    const i64 sequence = *sequences.at(token);
    if (index >= block_table.shape[1] * kPage || sequence < 0 || sequence >= block_table.shape[0]) return -1;
    const i64 page = *block_table.at(sequence, index / kPage);
    return page >= 0 && page * kPage < cache.slots() ? page * kPage + index % kPage : -1;
  }
};

struct SparseMlaAttentionBwdArgs {
  Tensor<const bf16, 3> d_out;  // [tokens, heads, v_dim], row-major
  Tensor<const f32, 2> d_lse;   // [tokens, heads], row-major
  Tensor<const bf16, 3> q;      // as in the forward pass
  Tensor<const bf16, 2> kv;
  Tensor<const i32, 2> indices;
  Tensor<const bf16, 3> out;  // [tokens, heads, v_dim], row-major
  Tensor<const f32, 2> lse;   // [tokens, heads], row-major
  f32 scale;
  Tensor<const i32, 1> topk_length;  // or absent
  Tensor<const f32, 1> sink;         // or absent
  Tensor<bf16, 3> d_q;               // [tokens, heads, qk_dim], row-major
  Tensor<bf16, 2> d_kv;              // [keys, qk_dim], row-major
  Tensor<f32, 1> d_sink;             // [heads]; [0] without a sink
  Tensor<u8, 1> workspace;           // sparse_mla_attention_bwd_workspace_bytes(); on CUDA its own
};

i64 sparse_mla_attention_workspace_bytes(i64 heads, i64 qk_dim, i64 v_dim, i64 topk);
i64 sparse_mla_decode_workspace_bytes(i64 heads, i64 topk, bool byte_cache);
i64 sparse_mla_decode_fast_workspace_bytes(i64 tokens, i64 heads, i64 topk);
// On CUDA the tiles of so few tokens are dealt out; for every tile and head 512 + 2 numbers.
GLM5_INLINE bool sparse_mla_decode_deals_tiles(i64 tokens, i64 heads, i64 topk) {
  return topk > 64 && tokens * ceil_div(heads, 64) <= 16;
}
GLM5_INLINE i64 sparse_mla_decode_fast_cuda_workspace_bytes(i64 tokens, i64 heads, i64 topk) {
  return sparse_mla_decode_deals_tiles(tokens, heads, topk) ? tokens * ceil_div(topk, 64) * heads * (512 + 2) * 4 : 0;
}
i64 sparse_mla_attention_bwd_workspace_bytes(i64 tokens, i64 heads, i64 qk_dim, i64 v_dim, i64 topk, i64 keys);
// On CUDA: for every key its sums (64-bit), a mark and a count; for every token and head a number; seven maxima.
GLM5_INLINE i64 sparse_mla_attention_bwd_cuda_workspace_bytes(i64 tokens, i64 heads, i64 qk_dim, i64, i64, i64 keys) {
  return keys * (8 * qk_dim + 8) + 4 * tokens * heads + 4 * 8;
}

void sparse_mla_attention_cpu(const SparseMlaAttentionArgs&);
void sparse_mla_attention_cuda(const SparseMlaAttentionArgs&, void* stream);
void sparse_mla_decode_fast_cpu(const SparseMlaAttentionArgs&);
void sparse_mla_decode_fast_cuda(const SparseMlaAttentionArgs&, void* stream);
void sparse_mla_attention_bwd_cpu(const SparseMlaAttentionBwdArgs&);
void sparse_mla_attention_bwd_cuda(const SparseMlaAttentionBwdArgs&, void* stream);

}  // namespace glm5
