// What the CPU kernels of indexer_logits_at share: their scratch, and how a token's keys are gathered.
//
// Forward: the keys that a token names are copied side by side, 1024 at a time, and scored as a matrix of keys, by the
// code of every scoring op. Backward: 64 places at a time, absent keys as zeros that count for nothing.
#pragma once

#include "cpu/float_environment.h"
#include "cpu/indexer.h"
#include "ops/indexer_logits_at/indexer_logits_at.h"

namespace glm5::at {

constexpr i64 kAlign = 64;

GLM5_INLINE u8* aligned(u8* address) {
  return address + (kAlign - reinterpret_cast<std::uintptr_t>(address) % kAlign) % kAlign;
}

// The key at a place of a row, or -1.
GLM5_INLINE i64 key_at(const Tensor<const i32, 2>& indices, i64 keys, i64 token, i64 place) {
  const i64 key = *indices.at(token, place);
  return key < keys ? key : -1;
}

// ---- Forward ----

// In bytes, of one thread: keys and their scales, where their scores go, the scores.
GLM5_INLINE i64 gathered_bytes(i64 dim) { return cpu::kIndexerKeys * (round_up(2 * dim, kAlign) + 4 + 4 + 4); }

struct Gathered {
  u8* keys;
  f32* scales;
  i32* places;
  f32* scores;

  GLM5_INLINE Gathered(u8* own, i64 dim) : keys(own) {
    scales = reinterpret_cast<f32*>(own + cpu::kIndexerKeys * round_up(2 * dim, kAlign));
    places = reinterpret_cast<i32*>(scales + cpu::kIndexerKeys);
    scores = reinterpret_cast<f32*>(places + cpu::kIndexerKeys);
  }
};

// The present keys of places [first, last); their number.
GLM5_INLINE i64 gather(const IndexerLogitsAtArgs& args, i64 token, i64 first, i64 last, const Gathered& to) {
  const IndexerOperands& operands = args.operands;
  const i64 bytes = operands.q.is_e4m3 ? 1 : 2, row = operands.q.shape[2] * bytes, keys = operands.k.shape[0];
  i64 count = 0;
  for (i64 j = first; j < last; ++j) {
    const i64 key = key_at(args.indices, keys, token, j);
    if (key < 0) continue;
    __builtin_memcpy(to.keys + count * row,
                     static_cast<const u8*>(operands.k.data) + key * operands.k.stride[0] * bytes, row);
    if (operands.q.is_e4m3) to.scales[count] = *operands.k_scales.at(key);
    to.places[count++] = static_cast<i32>(j);
  }
  return count;
}

template <class Scorer>
GLM5_INLINE void score_tokens(const IndexerLogitsAtArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const i64 heads = args.operands.q.shape[1], dim = args.operands.q.shape[2], topk = args.indices.shape[1];
  const cpu::IndexerShape shape{heads, dim, Scorer::kWithAmx};
  const cpu::IndexerScratchSize size(shape);
  const i64 own_bytes = size.bytes() + gathered_bytes(dim);
  u8* own = aligned(args.workspace.data) + thread * own_bytes;
  const cpu::IndexerScratch scratch(Tensor<u8, 1>{own, {size.bytes()}, {1}}, shape, 0);
  const Gathered gathered(own + size.bytes(), dim);
  for (i64 t = begin; t < end; ++t) {
    for (i64 j = 0; j < topk; ++j) *args.out.at(t, j) = -__builtin_inff();
    IndexerOperands one = args.operands;
    const i64 offset = t * one.q.stride[0] * (one.q.is_e4m3 ? 1 : 2);
    one.q.data = static_cast<const u8*>(one.q.data) + offset;
    one.q.shape[0] = 1;
    one.weights = {args.operands.weights.at(t, 0), {1, heads}, {heads, args.operands.weights.stride[1]}};
    for (i64 first = 0; first < topk; first += cpu::kIndexerKeys) {
      const i64 count = gather(args, t, first, smaller(first + cpu::kIndexerKeys, topk), gathered);
      const i32 window[2] = {0, static_cast<i32>(count)};
      one.windows = {window, {1, 2}, {2, 1}};
      one.k = {gathered.keys, one.q.is_e4m3, {count, dim}, {dim, 1}};
      one.k_scales = {gathered.scales, {count}, {1}};
      if (count == 0) continue;
      Scorer::score(one, cpu::IndexerItem{0, 1, 0, count}, scratch, {gathered.scores, count});
      for (i64 i = 0; i < count; ++i) *args.out.at(t, gathered.places[i]) = gathered.scores[i];
    }
  }
  cpu::restore_floats(before);
}

// ---- Backward ----

constexpr i64 kBlockTokens = 8;  // tokens whose contributions to d_k wait at a time: 8 MiB with 2048 keys of 128
constexpr i64 kColumns = 32;     // the widest panel
constexpr f32 kHalf = 0.5f;

GLM5_INLINE i64 padded_dim(i64 dim) { return round_up(dim, cpu::kGemmBlock); }

// The tokens of a block and the rows of d_k that they give, [token of the block][place][padded dim].
struct Block {
  IndexerLogitsAtBwdArgs args;
  i64 first_token;
  f32* contributions;
  u8* scratch;  // of all threads

  GLM5_INLINE f32* contribution(i64 token, i64 place) const {
    const i64 topk = args.indices.shape[1], dim = padded_dim(args.operands.q.shape[2]);
    return contributions + ((token - first_token) * topk + place) * dim;
  }
};

// One thread's scratch, in f32.
struct BwdScratch {
  i64 heads, dim;  // padded
  f32 *queries, *query_panels, *keys, *dot_panel, *key_panels, *a, *a_turned, *chains, *d_q, *weights, *g;

  GLM5_INLINE static i64 floats(i64 heads, i64 dim) {
    const i64 h = round_up(heads, cpu::kGemmBlock) + 16, d = padded_dim(dim);
    return 3 * h * d + (kAtChunk * 2 + kColumns) * d + h * (cpu::kGemmBlock + kAtChunk + kAtChains + 1) + kAtChunk;
  }
  GLM5_INLINE BwdScratch(u8* own, i64 all_heads, i64 all_dim)
      : heads(round_up(all_heads, cpu::kGemmBlock)), dim(padded_dim(all_dim)) {
    const i64 rows = heads + 16;  // 16: prefetches look ahead
    queries = reinterpret_cast<f32*>(own);
    query_panels = queries + rows * dim;
    d_q = query_panels + rows * dim;
    keys = d_q + rows * dim;
    dot_panel = keys + kAtChunk * dim;
    key_panels = dot_panel + kColumns * dim;
    a = key_panels + kAtChunk * dim;
    a_turned = a + rows * cpu::kGemmBlock;
    chains = a_turned + rows * kAtChunk;
    weights = chains + rows * kAtChains;
    g = weights + rows;
  }
};

// g of places [first, first + 64); 0 beside an absent key.
GLM5_INLINE void load_gradients(const IndexerLogitsAtBwdArgs& args, i64 token, i64 first, f32* g) {
  const i64 topk = args.indices.shape[1], keys = args.operands.k.shape[0];
  for (i64 j = 0; j < kAtChunk; ++j) {
    const i64 key = first + j < topk ? key_at(args.indices, keys, token, first + j) : -1;
    g[j] = key < 0 ? 0.0f : *args.d_out.at(token, first + j);
    if (key >= 0 && args.operands.q.is_e4m3) g[j] = g[j] * *args.operands.k_scales.at(key);
  }
}

GLM5_INLINE f32 sum_of_chains(f32* chain) {
  for (i64 half = kAtChains / 2; half >= 1; half /= 2)
    for (i64 i = 0; i < half; ++i) chain[i] += chain[i + half];
  return chain[0];
}

}  // namespace glm5::at
