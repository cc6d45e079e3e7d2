// What the CPU kernels of the indexer's ops share: how their work is cut, where their scratch lies, where a key lies.
//
// An item is a group of tokens against a chunk of keys. The group's queries are brought into the form that the inner
// loops read ("packed"), once; then the chunk's keys come by panels of a few, which stay in the L1 cache and serve all
// (token, head) rows of the group. None of these numbers shows in a result.
//
// A Scorer (cpu/indexer_generic.h, indexer_vectors.h, indexer_amx.h) scores an item: scores of keys inside a token's
// window go to its row of `scores`; the rest of the row is left alone.
#pragma once

#include "core/indexer.h"
#include "cpu/gemm.h"

namespace glm5::cpu {

constexpr i64 kIndexerKeys = 1024;        // keys of a chunk
constexpr i64 kIndexerMostTokens = 64;    // of a group
constexpr i64 kIndexerPanelKeys = kPage;  // the widest panel; all widths divide kPage: a panel lies within a page
// Bytes of a group's packed queries: half of a 512 KiB L2 cache. Where AMX is, L2 has 2 MiB, and a longer group is
// needed to hide the packing of keys.
constexpr i64 kIndexerQueryBytes = 256 << 10, kIndexerTileQueryBytes = 512 << 10;

// The sizes by which work is cut: those of the queries, and whether they are packed as bf16 for AMX or as f32.
struct IndexerShape {
  i64 heads, dim;
  bool with_amx;

  GLM5_INLINE i64 padded_heads() const { return round_up(heads, 16); }
  GLM5_INLINE i64 blocks() const { return ceil_div(dim, kGemmBlock); }
  GLM5_INLINE i64 padded_dim() const { return blocks() * kGemmBlock; }
  GLM5_INLINE i64 token_bytes() const { return larger(1, padded_heads() * padded_dim() * (with_amx ? 2 : 4)); }
  // Tokens of a group.
  GLM5_INLINE i64 group() const {
    const i64 bytes = with_amx ? kIndexerTileQueryBytes : kIndexerQueryBytes;
    return larger(1, smaller(kIndexerMostTokens, bytes / token_bytes()));
  }
};

// Where an item lies.
struct IndexerItem {
  i64 first_token, tokens, first_key, keys;

  GLM5_INLINE static i64 count(i64 tokens, i64 keys, i64 group) {
    return ceil_div(tokens, group) * ceil_div(keys, kIndexerKeys);
  }
  // Late tokens, which see most keys in a causal window, come first: the last items are short ones.
  GLM5_INLINE static IndexerItem of(i64 item, i64 all_tokens, i64 all_keys, i64 group) {
    const i64 chunks = ceil_div(all_keys, kIndexerKeys), groups = ceil_div(all_tokens, group);
    const i64 token = (groups - 1 - item / chunks) * group, key = item % chunks * kIndexerKeys;
    return {token, smaller(group, all_tokens - token), key, smaller(kIndexerKeys, all_keys - key)};
  }
};

// The scores of an item: those of token first_token + i for key first_key + j at data[i * stride + j].
struct ScoreRows {
  f32* data;
  i64 stride;

  GLM5_INLINE f32* of(const IndexerItem& item, i64 token) const { return data + (token - item.first_token) * stride; }
};

// ---- Scratch of one thread ----

// In bytes: the packed queries (16 rows more: prefetches look ahead) and for each row its weight and the place of its
// sum; a panel of keys and its scales; the heads' sums of a panel; products that wait to be summed.
constexpr i64 kIndexerScaleBytes = kIndexerPanelKeys * 4;
constexpr i64 kIndexerStageBytes = 8 << 10;

struct IndexerScratchSize {
  i64 queries, rows, panel, sums;

  GLM5_INLINE explicit IndexerScratchSize(const IndexerShape& shape) {
    queries = shape.group() * shape.token_bytes() + 16 * kGemmBlock * 4;
    rows = round_up(shape.group() * shape.padded_heads() * 4, 64);
    panel = kIndexerPanelKeys * shape.padded_dim() * (shape.with_amx ? 2 : 4);
    sums = shape.group() * 4 * kIndexerPanelKeys * 4;
  }
  GLM5_INLINE i64 bytes() const { return queries + 2 * rows + panel + kIndexerScaleBytes + sums + kIndexerStageBytes; }
};

// 64 more: the workspace is aligned to a cache line inside.
GLM5_INLINE i64 indexer_workspace_size(const IndexerShape& shape, i64 threads) {
  return threads * IndexerScratchSize(shape).bytes() + 64;
}

struct IndexerScratch {
  u8* queries;
  f32* weights;
  i32* places;
  u8* panel;
  f32* scales;
  f32* sums;
  f32* stage;

  GLM5_INLINE IndexerScratch(const Tensor<u8, 1>& workspace, const IndexerShape& shape, i64 thread) {
    const IndexerScratchSize size(shape);
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    queries =
        workspace.data + (round_up(static_cast<i64>(address), 64) - static_cast<i64>(address)) + thread * size.bytes();
    weights = reinterpret_cast<f32*>(queries + size.queries);
    places = reinterpret_cast<i32*>(queries + size.queries + size.rows);
    panel = queries + size.queries + 2 * size.rows;
    scales = reinterpret_cast<f32*>(panel + size.panel);
    sums = scales + kIndexerPanelKeys;
    stage = reinterpret_cast<f32*>(panel + size.panel + kIndexerScaleBytes + size.sums);
  }
};

// ---- Windows and keys ----

struct KeySpan {
  i64 begin, end;
  GLM5_INLINE bool is_empty() const { return begin >= end; }
};

// The window of a token, cut to [first, first + count).
GLM5_INLINE KeySpan indexer_span(const IndexerOperands& operands, i64 token, i64 first, i64 count) {
  return {larger(first, *operands.windows.at(token, 0)), smaller(first + count, *operands.windows.at(token, 1))};
}

// The keys of the item that some token of [begin, end) sees lie in this span.
GLM5_INLINE KeySpan indexer_span_of_all(const IndexerOperands& operands, const IndexerItem& item, i64 begin, i64 end) {
  KeySpan all{item.first_key + item.keys, item.first_key};
  for (i64 t = begin; t < end; ++t) {
    const KeySpan span = indexer_span(operands, t, item.first_key, item.keys);
    if (!span.is_empty()) all = {smaller(all.begin, span.begin), larger(all.end, span.end)};
  }
  return all;
}

// The end of the tokens from `begin` on that share their keys.
GLM5_INLINE i64 indexer_same_keys(const IndexerOperands& operands, i64 begin, i64 end) {
  if (!operands.is_paged) return end;
  i64 t = begin + 1;
  while (t < end && *operands.sequences.at(t) == *operands.sequences.at(begin)) ++t;
  return t;
}

// Keys as rows of dim values, `stride` values apart, with their scales.
struct KeyRows {
  const void* values;
  i64 stride;
  const f32* scales;  // null with bf16
  i64 scale_stride;
};

// The keys from `first` on: all that follow, or those of its page. Of a page that a window of `token` reaches.
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

// Calls visit(begin, end) for every longest run of tokens within [first, last) that see a key of [key, key + keys).
template <class Visit>
GLM5_INLINE void for_runs_that_see(const IndexerOperands& operands, i64 first, i64 last, i64 key, i64 keys,
                                   const Visit& visit) {
  for (i64 t = first; t < last;) {
    if (indexer_span(operands, t++, key, keys).is_empty()) continue;
    const i64 begin = t - 1;
    while (t < last && !indexer_span(operands, t, key, keys).is_empty()) ++t;
    visit(begin, t);
  }
}

// Scores of `keys` keys from `key` on for one token: those inside its window go to its row.
GLM5_INLINE void indexer_store(const IndexerOperands& operands, const IndexerItem& item, i64 token, i64 key, i64 keys,
                               const f32* scores, const ScoreRows& rows) {
  const KeySpan span = indexer_span(operands, token, key, keys);
  f32* row = rows.of(item, token) - item.first_key;
  for (i64 s = span.begin; s < span.end; ++s) row[s] = scores[s - key];
}

}  // namespace glm5::cpu
