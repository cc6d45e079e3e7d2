// How the gradient's work is cut on a CPU, and where its scratch lies.
//
// Two passes, each of which computes the products d anew: no partial sums are kept, and nothing depends on the number
// of threads. Pass 1, an item: a group of tokens against all their keys, for d_q and d_weights. Pass 2, an item: a
// block of 128 keys against all tokens that see one, for d_k.
#pragma once

#include "cpu/gemm.h"
#include "ops/indexer_logits/indexer_logits.h"

namespace glm5::indexer_logits_bwd {

constexpr i64 kKeys = 128;  // of a block
constexpr i64 kRows = 128;  // of (token, head) in a group, or the heads of one token
constexpr i64 kSums = 16;   // chains of d_weights

// Rows of queries [block of 128 dim][row][128] (16 more: prefetches look ahead), their factors m [row][128 keys] and
// their gradients [row][padded dim]; a block of keys, as panels and as rows; gradients of keys; chains of d_weights;
// g and the places inside the windows, of a panel.
struct ScratchSize {
  i64 rows, padded_dim;

  GLM5_INLINE ScratchSize(i64 heads, i64 dim)
      : rows(larger(kRows, heads)), padded_dim(round_up(dim, cpu::kGemmBlock)) {}
  GLM5_INLINE i64 row_values() const { return rows * padded_dim; }
  GLM5_INLINE i64 key_values() const { return kKeys * padded_dim; }
  GLM5_INLINE i64 values() const {
    return 2 * row_values() + 16 * cpu::kGemmBlock + rows * kKeys + 3 * key_values() + rows * kSums + 2 * kKeys;
  }
};

GLM5_INLINE i64 workspace_size(i64 heads, i64 dim, i64 threads) {
  return threads * ScratchSize(heads, dim).values() * 4 + 64;
}

struct Scratch {
  f32 *queries, *d_queries, *factors, *panels, *keys, *d_keys, *sums, *g, *inside;

  GLM5_INLINE Scratch(const Tensor<u8, 1>& workspace, i64 heads, i64 dim, i64 thread) {
    const ScratchSize size(heads, dim);
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    queries =
        reinterpret_cast<f32*>(workspace.data + (round_up(static_cast<i64>(address), 64) - static_cast<i64>(address))) +
        thread * size.values();
    d_queries = queries + size.row_values() + 16 * cpu::kGemmBlock;
    factors = d_queries + size.row_values();
    panels = factors + size.rows * kKeys;
    keys = panels + size.key_values();
    d_keys = keys + size.key_values();
    sums = d_keys + size.key_values();
    g = sums + size.rows * kSums;
    inside = g + kKeys;
  }
};

// Tokens of a group.
GLM5_INLINE i64 group_of(i64 heads) { return larger(1, kRows / larger(1, heads)); }

struct Span {
  i64 begin, end;
  GLM5_INLINE bool is_empty() const { return begin >= end; }
};
GLM5_INLINE Span span_of(const IndexerOperands& operands, i64 token, i64 first_key, i64 keys) {
  return {larger(first_key, *operands.windows.at(token, 0)), smaller(first_key + keys, *operands.windows.at(token, 1))};
}

GLM5_INLINE f32 g_of(const IndexerLogitsBwdArgs& args, i64 token, i64 key) {
  const f32 d_out = *args.d_out.at(token, key);
  return args.operands.q.is_e4m3 ? d_out * *args.operands.k_scales.at(key) : d_out;
}

// Adds 16 chains by halves.
GLM5_INLINE f32 sum_of_chains(f32* p) {
  for (i64 width = kSums / 2; width > 0; width /= 2) {
    for (i64 j = 0; j < width; ++j) p[j] += p[j + width];
  }
  return p[0];
}

}  // namespace glm5::indexer_logits_bwd
