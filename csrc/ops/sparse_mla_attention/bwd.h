// What the CPU kernels of sparse_mla_attention's gradient share: a block of tokens, scratch, and the gradients of the
// scores. A token's keys are taken 128 at a time. Its rows of d_kv wait until a block of tokens is done; then each
// key's owner adds them up in order.
#pragma once

#include "ops/sparse_mla_attention/items.h"

namespace glm5::sparse_mla {

// Rows of d_kv that a token has room for: whole tiles.
GLM5_INLINE i64 padded_topk(i64 topk) { return round_up(topk, cpu::kGemmStep); }

// Tokens [first_token, ..) of a block and what they give: rows of d_kv, [token of the block][present key][padded dim],
// and the gradient of the sink, [token][head].
struct Block {
  SparseMlaAttentionBwdArgs args;
  i64 first_token;
  f32* contributions;
  f64* d_sink;
  u8* scratch;  // of all threads

  GLM5_INLINE i64 padded_dim() const { return round_up(args.q.shape[2], kWidestPanel); }
  GLM5_INLINE f32* contribution(i64 token, i64 key) const {
    return contributions + ((token - first_token) * padded_topk(args.indices.shape[1]) + key) * padded_dim();
  }
};

// In f32, of one thread: padded dims are blocks of 128.
struct BwdSizes {
  i64 heads, qk_dim, v_dim, topk;

  GLM5_INLINE i64 padded_heads() const { return round_up(heads, cpu::kGemmStep); }
  GLM5_INLINE i64 row_floats(i64 dim) const { return padded_heads() * round_up(dim, cpu::kGemmBlock); }
  GLM5_INLINE i64 chunk_floats() const { return padded_heads() * cpu::kGemmBlock; }
  // 128 keys, each with all heads in blocks of 128.
  GLM5_INLINE i64 turned_floats() const { return cpu::kGemmBlock * round_up(heads, cpu::kGemmBlock); }
  // Of one panel; or (AMX) of 128 keys as tiles of rows; and as pairs, with the last step of their values.
  GLM5_INLINE i64 panel_floats() const {
    return cpu::kGemmBlock * larger(kWidestPanel, round_up(qk_dim, cpu::kGemmStep) / 2);
  }
  GLM5_INLINE i64 pair_floats() const {
    return cpu::kGemmBlock * (round_up(qk_dim, cpu::kGemmStep) + cpu::kGemmStep) / 2;
  }
  GLM5_INLINE i64 bytes() const {
    const i64 floats = 3 * row_floats(qk_dim) + 2 * row_floats(v_dim) + 2 * chunk_floats() + 2 * turned_floats() +
                       panel_floats() + pair_floats() + chunk_floats() + 2 * heads;
    return round_up(4 * floats + (8 + 4) * topk, kAlign) + 16 * kAlign;
  }
};

struct BwdScratch {
  f32 *queries, *d_outs;                // rows: [128 dims][head][128]
  f32 *query_panels, *d_out_panels;     // columns: [panel][head][columns of a panel], heads padded with zeros
  f32* d_q;                             // [panel][head][columns of a panel]
  f32 *scores, *d_scores;               // [head][128 keys]; then ds and W as bf16 in f32
  f32 *turned_scores, *turned_weights;  // [128 heads][128 keys][128]: ds and W
  f32* panel;
  bf16 *pairs, *tiles;    // of AMX: keys as pairs, ds as rows of heads
  f32 *deltas, *factors;  // [head]
  const bf16** rows;
  i32* places;

  GLM5_INLINE BwdScratch(u8* own, const BwdSizes& sizes) {
    queries = take<f32>(own, sizes.row_floats(sizes.qk_dim));
    query_panels = take<f32>(own, sizes.row_floats(sizes.qk_dim));
    d_q = take<f32>(own, sizes.row_floats(sizes.qk_dim));
    d_outs = take<f32>(own, sizes.row_floats(sizes.v_dim));
    d_out_panels = take<f32>(own, sizes.row_floats(sizes.v_dim));
    scores = take<f32>(own, sizes.chunk_floats());
    d_scores = take<f32>(own, sizes.chunk_floats());
    turned_scores = take<f32>(own, sizes.turned_floats());
    turned_weights = take<f32>(own, sizes.turned_floats());
    panel = take<f32>(own, sizes.panel_floats());
    pairs = take<bf16>(own, 2 * sizes.pair_floats());
    tiles = take<bf16>(own, 2 * sizes.chunk_floats());
    deltas = take<f32>(own, sizes.heads);
    factors = take<f32>(own, sizes.heads);
    rows = take<const bf16*>(own, sizes.topk);
    places = take<i32>(own, sizes.topk);
  }
};

// delta and factor of every head of a token, and its gradients of the sinks.
GLM5_INLINE void load_heads(const Block& block, i64 token, i64 count, const BwdScratch& scratch) {
  const SparseMlaAttentionBwdArgs& args = block.args;
  for (i64 h = 0; h < args.q.shape[1]; ++h) {
    f32 chain[kChains] = {};
    for (i64 c = 0; c < args.out.shape[2]; ++c)
      chain[c % kChains] =
          __builtin_fmaf(to_f32(*args.out.at(token, h, c)), to_f32(*args.d_out.at(token, h, c)), chain[c % kChains]);
    scratch.deltas[h] = sum_of_chains(chain);
    scratch.factors[h] = sink_factor(args.sink, h, *args.lse.at(token, h));
    if (args.sink.exists())
      block.d_sink[token * args.q.shape[1] + h] =
          count == 0 ? 0.0 : -static_cast<f64>((1.0f - scratch.factors[h]) * scratch.deltas[h]);
  }
}

// From d and dp of a head's 128 keys or fewer, in `scores` and `d_scores`: ds and W, in their places; zero from
// `valid` on, up to a whole step.
template <class Lanes>
GLM5_INLINE void differentiate_scores(const SparseMlaAttentionBwdArgs& args, i64 token, i64 h, i64 valid,
                                      const BwdScratch& scratch) {
  using F32 = typename Lanes::F32;
  const F32 scale = Lanes::broadcast(args.scale), lse = Lanes::broadcast(*args.lse.at(token, h));
  const F32 factor = Lanes::broadcast(scratch.factors[h]), delta = Lanes::broadcast(scratch.deltas[h]);
  const F32 d_lse = Lanes::broadcast(*args.d_lse.at(token, h));
  f32 *d = scratch.scores + h * cpu::kGemmBlock, *dp = scratch.d_scores + h * cpu::kGemmBlock;
  for (i64 i = 0; i < round_up(valid, Lanes::kCount); i += Lanes::kCount) {
    const F32 p = cpu::exp_of<Lanes>(Lanes::load(d + i) * scale - lse);
    const F32 e = Lanes::fma(factor, Lanes::load(dp + i) - delta, d_lse);
    Lanes::store(d + i, Lanes::round_to_bf16((p * e) * scale));
    Lanes::store(dp + i, Lanes::round_to_bf16(factor * p));
  }
  for (i64 i = valid; i < round_up(valid, cpu::kGemmStep); ++i) d[i] = dp[i] = 0.0f;
}

// A Kernel works on a token whose keys are listed: d_q, and its rows of d_kv.
template <class Kernel>
GLM5_INLINE void differentiate(const Block& block, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const SparseMlaAttentionBwdArgs& args = block.args;
  const BwdSizes sizes{args.q.shape[1], args.q.shape[2], args.out.shape[2], args.indices.shape[1]};
  const BwdScratch scratch(block.scratch + thread * sizes.bytes(), sizes);
  for (i64 t = block.first_token + begin; t < block.first_token + end; ++t) {
    const i64 count = list_present(args.kv, args.indices, args.topk_length, t, scratch.rows, scratch.places);
    load_heads(block, t, count, scratch);
    Kernel::differentiate_token(block, t, count, scratch);
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::sparse_mla
