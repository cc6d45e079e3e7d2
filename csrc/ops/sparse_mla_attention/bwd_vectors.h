// The gradient of sparse_mla_attention with vectors of any width (Lanes: cpu/gemm_vectors.h): five products for each
// 128 keys of a token. d = q k^T and dp = d_out v^T share panels of keys and give ds and W; d_q += ds k; the rows of
// d_kv are ds^T q + W^T d_out, whose panels are packed once for a token.
#pragma once

#include "ops/sparse_mla_attention/bwd.h"
#include "ops/sparse_mla_attention/vectors.h"

namespace glm5::sparse_mla {

// [panel][head][column], zero for what fills up the last step of heads and the last panel.
template <class Lanes>
static void pack_panels(f32* to, const Tensor<const bf16, 3>& from, i64 token) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const i64 heads = from.shape[1], dim = from.shape[2], padded = round_up(heads, cpu::kGemmStep);
  for (i64 c = 0; c < dim; c += kPanel)
    avx2::pack(to + c * padded, kPanel, from.at(token, 0, c), from.stride[1], 1, heads, smaller(kPanel, dim - c),
               padded, kPanel, 0);
}

// d and dp.
template <class Lanes>
static void multiply_keys(const SparseMlaAttentionBwdArgs& args, const bf16* const* rows, i64 keys,
                          const BwdScratch& scratch) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const i64 heads = args.q.shape[1], dim = args.q.shape[2], v_dim = args.out.shape[2];
  for (i64 first = 0; first < keys; first += kPanel) {
    zero_rows<Lanes>(scratch.scores + first, heads, cpu::kGemmBlock);
    zero_rows<Lanes>(scratch.d_scores + first, heads, cpu::kGemmBlock);
    for (i64 k = 0; k < dim; k += cpu::kGemmBlock) {
      const i64 dims = smaller(cpu::kGemmBlock, dim - k), values = larger(0, smaller(cpu::kGemmBlock, v_dim - k));
      pack_keys<kPanel>(scratch.panel, rows + first, keys - first, k, dims, round_up(dims, cpu::kGemmStep));
      add_panel<Lanes>(scratch.queries + k * heads, heads, scratch.panel, dims, scratch.scores + first,
                       cpu::kGemmBlock);
      // What follows the values in their last step belongs to the key alone.
      if (values % cpu::kGemmStep != 0)
        pack_keys<kPanel>(scratch.panel, rows + first, keys - first, k, values, round_up(values, cpu::kGemmStep));
      add_panel<Lanes>(scratch.d_outs + k * heads, heads, scratch.panel, values, scratch.d_scores + first,
                       cpu::kGemmBlock);
    }
  }
}

// [head][128 keys] becomes [128 heads][key][128], zero for what fills up the last step of heads.
static void turn(const f32* from, i64 heads, i64 keys, f32* to) {
  for (i64 h = 0; h < heads; h += cpu::kGemmBlock) {
    const i64 here = smaller(cpu::kGemmBlock, heads - h);
    avx2::pack(to + h * cpu::kGemmBlock, cpu::kGemmBlock, from + h * cpu::kGemmBlock, 1, cpu::kGemmBlock, keys, here,
               keys, round_up(here, cpu::kGemmStep), 0);
  }
}

template <class Lanes>
static void add_to_d_q(const SparseMlaAttentionBwdArgs& args, i64 first, i64 keys, i64 count,
                       const BwdScratch& scratch) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const i64 heads = args.q.shape[1], dim = args.q.shape[2], panels = ceil_div(dim, kPanel);
  const i64 next = first + cpu::kGemmBlock, waiting = larger(0, smaller(cpu::kGemmBlock, count - next));
  for (i64 c = 0; c < dim; c += kPanel) {
    pack_values<kPanel>(scratch.panel, scratch.rows + first, keys, c, dim - c);
    prefetch_rows(scratch.rows, next + waiting * (c / kPanel) / panels, next + waiting * (c / kPanel + 1) / panels, 0,
                  2 * dim);
    add_panel<Lanes>(scratch.scores, heads, scratch.panel, keys, scratch.d_q + c * heads, kPanel);
  }
}

template <class Lanes>
static void add_heads(const SparseMlaAttentionBwdArgs& args, i64 keys, const f32* turned, const f32* panels, i64 c,
                      f32* rows, i64 stride) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const i64 heads = args.q.shape[1], padded = round_up(heads, cpu::kGemmStep);
  for (i64 h = 0; h < heads; h += cpu::kGemmBlock)
    add_panel<Lanes>(turned + h * cpu::kGemmBlock, keys, panels + c * padded + h * kPanel,
                     smaller(cpu::kGemmBlock, heads - h), rows, stride);
}

// Rows of d_kv, `stride` apart.
template <class Lanes>
static void contribute(const SparseMlaAttentionBwdArgs& args, i64 keys, f32* rows, i64 stride,
                       const BwdScratch& scratch) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const i64 dim = args.q.shape[2], v_dim = args.out.shape[2];
  for (i64 c = 0; c < dim; c += kPanel) {
    zero_rows<Lanes>(rows + c, keys, stride);
    add_heads<Lanes>(args, keys, scratch.turned_scores, scratch.query_panels, c, rows + c, stride);
    if (c < v_dim) add_heads<Lanes>(args, keys, scratch.turned_weights, scratch.d_out_panels, c, rows + c, stride);
  }
}

template <class Lanes>
struct BwdKernel {
  GLM5_INLINE static void differentiate_token(const Block& block, i64 token, i64 count, const BwdScratch& scratch) {
    constexpr i64 kPanel = kPanelOf<Lanes>;
    const SparseMlaAttentionBwdArgs& args = block.args;
    const i64 heads = args.q.shape[1], dim = args.q.shape[2];
    pack_heads(scratch.queries, args.q, token, 0, heads);
    pack_heads(scratch.d_outs, args.d_out, token, 0, heads);
    pack_panels<Lanes>(scratch.query_panels, args.q, token);
    pack_panels<Lanes>(scratch.d_out_panels, args.d_out, token);
    for (i64 c = 0; c < dim; c += kPanel) zero_rows<Lanes>(scratch.d_q + c * heads, heads, kPanel);
    for (i64 first = 0; first < count; first += cpu::kGemmBlock) {
      const i64 keys = smaller(cpu::kGemmBlock, count - first);
      multiply_keys<Lanes>(args, scratch.rows + first, keys, scratch);
      for (i64 h = 0; h < heads; ++h) differentiate_scores<Lanes>(args, token, h, keys, scratch);
      turn(scratch.scores, heads, keys, scratch.turned_scores);
      turn(scratch.d_scores, heads, keys, scratch.turned_weights);
      add_to_d_q<Lanes>(args, first, keys, count, scratch);
      contribute<Lanes>(args, keys, block.contribution(token, first), block.padded_dim(), scratch);
    }
    for (i64 h = 0; h < heads; ++h) {
      for (i64 c = 0; c < dim; c += kPanel)
        avx2::store_row(args.d_q.at(token, h, c), scratch.d_q + c * heads + h * kPanel, smaller(kPanel, dim - c),
                        false);
    }
  }
};

}  // namespace glm5::sparse_mla
