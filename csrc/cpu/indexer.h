// What the CPU kernels of the indexer's ops share: how their work is cut, where their scratch lies, where a key lies.
//
// An item is a group of tokens against a chunk of keys. The group's queries are brought into the form that the inner
// loops read ("packed"), once; then the chunk's keys come by panels of a few, which stay in the L1 cache and serve all
// (token, head) rows of the group. None of these numbers shows in a result.
#pragma once

#include "core/indexer.h"

namespace glm5::cpu {

constexpr i64 kIndexerStep = 32;        // of dim: a step of the summation tree
constexpr i64 kIndexerKeys = 1024;      // keys of a chunk
constexpr i64 kIndexerQueries = 65536;  // values of a group's queries: as f32 256 KiB, of a 512 KiB L2 cache
constexpr i64 kIndexerMostTokens = 64;  // of a group
constexpr i64 kIndexerPanelKeys = 32;   // the widest panel; a divisor of kPage, so that a panel lies within a page

GLM5_INLINE i64 indexer_padded_dim(i64 dim) { return round_up(dim, kIndexerStep); }

// Tokens of a group.
GLM5_INLINE i64 indexer_group(i64 heads, i64 dim) {
  const i64 values = larger(1, heads * indexer_padded_dim(dim));
  return larger(1, smaller(kIndexerMostTokens, kIndexerQueries / values));
}

// One thread's scratch, in bytes: the packed queries and their weights; a panel of keys; the heads' sums of a panel.
GLM5_INLINE i64 indexer_query_bytes(i64 heads, i64 dim) {
  return indexer_group(heads, dim) * round_up(heads, 16) * indexer_padded_dim(dim) * 4;
}
GLM5_INLINE i64 indexer_weight_bytes(i64 heads, i64 dim) {
  return round_up(indexer_group(heads, dim) * round_up(heads, 16) * 4, 64);
}
GLM5_INLINE i64 indexer_panel_bytes(i64 dim) { return kIndexerPanelKeys * indexer_padded_dim(dim) * 4; }
GLM5_INLINE i64 indexer_sum_bytes(i64 heads, i64 dim) { return indexer_group(heads, dim) * 4 * kIndexerPanelKeys * 4; }
GLM5_INLINE i64 indexer_scratch_bytes(i64 heads, i64 dim) {
  return indexer_query_bytes(heads, dim) + indexer_weight_bytes(heads, dim) + indexer_panel_bytes(dim) +
         indexer_sum_bytes(heads, dim);
}
// 64 more: the workspace is aligned to a cache line inside.
GLM5_INLINE i64 indexer_workspace_size(i64 heads, i64 dim, i64 threads) {
  return threads * indexer_scratch_bytes(heads, dim) + 64;
}

// The scratch of one thread.
struct IndexerScratch {
  u8* queries;
  f32* weights;
  u8* panel;
  f32* sums;

  GLM5_INLINE IndexerScratch(const Tensor<u8, 1>& workspace, i64 heads, i64 dim, i64 thread) {
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    u8* own = workspace.data + (round_up(static_cast<i64>(address), 64) - static_cast<i64>(address)) +
              thread * indexer_scratch_bytes(heads, dim);
    queries = own;
    weights = reinterpret_cast<f32*>(queries + indexer_query_bytes(heads, dim));
    panel = reinterpret_cast<u8*>(weights) + indexer_weight_bytes(heads, dim);
    sums = reinterpret_cast<f32*>(panel + indexer_panel_bytes(dim));
  }
};

// Where an item lies. Late tokens, which see most keys in a causal window, come first: the last items are short ones.
struct IndexerItem {
  i64 first_token, tokens, first_key, keys;

  GLM5_INLINE static i64 count(i64 tokens, i64 keys, i64 group) {
    return ceil_div(tokens, group) * ceil_div(keys, kIndexerKeys);
  }
  GLM5_INLINE IndexerItem(i64 item, i64 all_tokens, i64 all_keys, i64 group) {
    const i64 chunks = ceil_div(all_keys, kIndexerKeys), groups = ceil_div(all_tokens, group);
    first_token = (groups - 1 - item / chunks) * group;
    tokens = smaller(group, all_tokens - first_token);
    first_key = item % chunks * kIndexerKeys;
    keys = smaller(kIndexerKeys, all_keys - first_key);
  }
};

// The window of a token, cut to [first, first + count).
struct KeySpan {
  i64 begin, end;
  GLM5_INLINE bool is_empty() const { return begin >= end; }
};
GLM5_INLINE KeySpan indexer_span(const IndexerOperands& operands, i64 token, i64 first, i64 count) {
  return {larger(first, *operands.windows.at(token, 0)), smaller(first + count, *operands.windows.at(token, 1))};
}

// Keys from `first` on as rows of dim values, `stride` values apart, and their scales: those of the same page, or all.
struct KeyRows {
  const void* values;
  i64 stride;
  const f32* scales;  // null with bf16
  i64 scale_stride;
};
GLM5_INLINE KeyRows indexer_keys(const IndexerOperands& operands, i64 token, i64 first) {
  const i64 bytes = operands.q.is_e4m3 ? 1 : 2;
  if (!operands.is_paged) {
    const u8* values = static_cast<const u8*>(operands.k.data) + first * operands.k.stride[0] * bytes;
    const f32* scales = operands.q.is_e4m3 ? operands.k_scales.at(first) : nullptr;
    return {values, operands.k.stride[0], scales, operands.k_scales.stride[0]};
  }
  const i64 dim = operands.q.shape[2], row = first % kPage;
  const u8* page = operands.cache.at(*operands.block_table.at(*operands.sequences.at(token), first / kPage), 0);
  const u8* scales = page + kPage * dim + row * 4;
  return {page + row * dim * bytes, dim, operands.q.is_e4m3 ? reinterpret_cast<const f32*>(scales) : nullptr, 1};
}

}  // namespace glm5::cpu
