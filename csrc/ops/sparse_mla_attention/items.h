// What the CPU kernels of sparse_mla_attention share: items, scratch, the present keys of a token, and the softmax.
//
// An item is a token, or some heads of one where tokens are few. Scores and then probabilities lie as
// [128 keys][head][128], as the loops of cpu/gemm_vectors.h read rows.
#pragma once

#include "cpu/cache_rows.h"
#include "cpu/exp.h"
#include "cpu/float_environment.h"
#include "cpu/gemm.h"
#include "ops/sparse_mla_attention/sparse_mla_attention.h"

namespace glm5::sparse_mla {

constexpr i64 kChains = 16;
constexpr i64 kAlign = 64;
constexpr i64 kWidestPanel = 32;                     // columns that a vector kernel's inner loop takes
constexpr i64 kTiledKeys = 64, kTiledColumns = 128;  // that AMX brings into tiles at a time
constexpr i64 kHeadTile = 16;                        // items have a multiple of these heads, or all

struct Task {
  SparseMlaAttentionArgs args;
  i64 item_heads;

  GLM5_INLINE i64 items_of_token() const { return larger(1, ceil_div(args.q.shape[1], larger(1, item_heads))); }
};

struct Item {
  i64 token, first_head, heads;

  GLM5_INLINE Item(const Task& task, i64 item) {
    const i64 own = task.items_of_token();
    token = item / own;
    first_head = item % own * task.item_heads;
    heads = smaller(task.item_heads, task.args.q.shape[1] - first_head);
  }
};

// Refuses pages that a position of a sequence cannot be looked up by.
void check_pages(const char* op, const SparseMlaAttentionArgs& args);

// ---- Present keys ----

// The places of a row that may hold a key.
GLM5_INLINE i64 row_length(const Tensor<const i32, 2>& indices, const Tensor<const i32, 1>& topk_length, i64 token) {
  return topk_length.exists() ? smaller(indices.shape[1], *topk_length.at(token)) : indices.shape[1];
}

// Where the present keys of a token lie, and their places; their number.
GLM5_INLINE i64 list_present(const Tensor<const bf16, 2>& kv, const Tensor<const i32, 2>& indices,
                             const Tensor<const i32, 1>& topk_length, i64 token, const bf16** rows, i32* places) {
  const i64 length = row_length(indices, topk_length, token), keys = kv.shape[0];
  i64 count = 0;
  for (i64 j = 0; j < length; ++j) {
    const i64 key = *indices.at(token, j);
    if (key < 0 || key >= keys) continue;
    rows[count] = kv.at(key, 0);
    places[count++] = static_cast<i32>(j);
  }
  return count;
}

// The same of a token whose keys lie in a cache; those of a byte cache are made into rows of bf16 from `decoded` on.
GLM5_INLINE i64 list_present_paged(const SparseMlaAttentionArgs& args, i64 token, const bf16** rows, i32* places,
                                   bf16* decoded) {
  const i64 length = row_length(args.indices, args.topk_length, token);
  const cpu::FloatState before = cpu::use_default_floats();  // as mla_cache_gather
  i64 count = 0;
  for (i64 j = 0; j < length; ++j) {
    const i64 slot = args.slot_of(token, *args.indices.at(token, j));
    if (slot < 0) continue;
    if (args.cache.bytes.exists()) {
      cpu::decode_latent(args.cache.bytes_of(slot), decoded + count * kMlaDim);
      rows[count] = decoded + count * kMlaDim;
    } else {
      rows[count] = args.cache.values_of(slot);
    }
    places[count++] = static_cast<i32>(j);
  }
  cpu::restore_floats(before);
  return count;
}

// Asks for bytes [begin, end) of rows [first, last) of those that a token names.
GLM5_INLINE void prefetch_rows(const bf16* const* rows, i64 first, i64 last, i64 begin, i64 end) {
  for (i64 i = first; i < last; ++i) {
    for (i64 byte = begin; byte < end; byte += 64)
      __builtin_prefetch(reinterpret_cast<const u8*>(rows[i]) + byte, 0, 2);
  }
}

// ---- Scratch of one thread ----

struct Sizes {
  i64 heads, qk_dim, v_dim, topk;
  bool decodes = false;  // rows of bf16 are made of a byte cache

  GLM5_INLINE i64 blocks() const { return ceil_div(topk, cpu::kGemmBlock); }
  // Queries as f32 in blocks of 128, or as tiles of bf16 (AMX), which are no larger.
  GLM5_INLINE i64 query_floats() const { return round_up(heads, kHeadTile) * round_up(qk_dim, cpu::kGemmBlock); }
  GLM5_INLINE i64 score_floats() const { return round_up(heads, kHeadTile) * blocks() * cpu::kGemmBlock; }
  // Of one panel; or (AMX) of 64 keys, or 128 columns of all keys, as tiles of bf16.
  GLM5_INLINE i64 panel_floats() const {
    const i64 keys = kTiledKeys * round_up(qk_dim, cpu::kGemmStep) / 2;
    const i64 columns = blocks() * cpu::kGemmBlock * kTiledColumns / 2;
    return larger(cpu::kGemmBlock * kWidestPanel, larger(keys, columns));
  }
  GLM5_INLINE i64 out_floats() const { return round_up(heads, kHeadTile) * round_up(v_dim, kWidestPanel); }
  GLM5_INLINE i64 bytes() const {
    const i64 floats = query_floats() + score_floats() + panel_floats() + out_floats() + heads;
    const i64 rows = decodes ? 2 * topk * kMlaDim : 0;
    return round_up(4 * (floats + blocks() * cpu::kGemmBlock) + 2 * score_floats() + (8 + 4) * topk + rows, kAlign) +
           16 * kAlign;
  }
};

GLM5_INLINE u8* aligned(u8* address) {
  return address + (kAlign - reinterpret_cast<std::uintptr_t>(address) % kAlign) % kAlign;
}

// The next `count` values of a thread's scratch.
template <class T>
GLM5_INLINE T* take(u8*& own, i64 count) {
  T* values = reinterpret_cast<T*>(own);
  own += round_up(count * static_cast<i64>(sizeof(T)), kAlign);
  return values;
}

struct Scratch {
  f32 *queries, *scores, *panel, *out, *weights, *sums;
  bf16* tiles;    // as many as there are scores
  bf16* decoded;  // [topk][576] of a byte cache
  const bf16** rows;
  i32* places;

  GLM5_INLINE Scratch(u8* own, const Sizes& sizes) {
    queries = take<f32>(own, sizes.query_floats());
    scores = take<f32>(own, sizes.score_floats());
    tiles = take<bf16>(own, sizes.score_floats());
    panel = take<f32>(own, sizes.panel_floats());
    out = take<f32>(own, sizes.out_floats());
    weights = take<f32>(own, sizes.heads);
    sums = take<f32>(own, sizes.blocks() * cpu::kGemmBlock);
    rows = take<const bf16*>(own, sizes.topk);
    places = take<i32>(own, sizes.topk);
    decoded = take<bf16>(own, sizes.decodes ? sizes.topk * kMlaDim : 0);
  }
};

// ---- Softmax ----

GLM5_INLINE f32 sum_of_chains(f32* chain) {
  for (i64 half = kChains / 2; half >= 1; half /= 2)
    for (i64 i = 0; i < half; ++i) chain[i] += chain[i + half];
  return chain[0];
}

// The factor of a sink, which may be absent.
GLM5_INLINE f32 sink_factor(const Tensor<const f32, 1>& sink, i64 head, f32 lse) {
  return sink.exists() ? 1.0f / (1.0f + cpu::exp_of<cpu::ScalarLanes>(*sink.at(head) - lse)) : 1.0f;
}

// s of 128 keys or fewer: products times scale, -inf in place of what fills up the last step; the largest so far.
template <class Lanes>
GLM5_INLINE typename Lanes::F32 scale_scores(f32* row, i64 valid, f32 scale, typename Lanes::F32 largest) {
  const i64 whole = valid / Lanes::kCount * Lanes::kCount;
  for (i64 i = whole; i < valid; ++i) row[i] = row[i] * scale;
  for (i64 i = valid; i < round_up(valid, cpu::kGemmStep); ++i) row[i] = -__builtin_inff();
  for (i64 i = 0; i < round_up(valid, Lanes::kCount); i += Lanes::kCount) {
    auto s = Lanes::load(row + i);
    if (i < whole) s = s * Lanes::broadcast(scale);
    Lanes::store(row + i, s);
    largest = Lanes::larger_of(s, largest);
  }
  return largest;
}

template <class Lanes>
GLM5_INLINE f32 largest_lane(typename Lanes::F32 x) {
  alignas(kAlign) f32 lanes[Lanes::kCount];
  Lanes::store(lanes, x);
  f32 largest = lanes[0];
  for (i64 i = 1; i < Lanes::kCount; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// p in place of the products of a head with `count` keys, as bf16 in f32; `row` is that of the first block. Gives the
// head's weight, (1 / l) * factor, and its lse, and adds to the probabilities' `sums` where these are wanted.
template <class Lanes>
static void softmax(const SparseMlaAttentionArgs& args, const Item& item, i64 h, i64 count, const Scratch& scratch,
                    bool with_sums) {
  using F32 = typename Lanes::F32;
  constexpr i64 kVectors = kChains / Lanes::kCount;
  const i64 stride = item.heads * cpu::kGemmBlock, head = item.first_head + h;
  f32* first = scratch.scores + h * cpu::kGemmBlock;
  F32 largest = Lanes::broadcast(-__builtin_inff());
  for (i64 i = 0; i < count; i += cpu::kGemmBlock)
    largest = scale_scores<Lanes>(first + i / cpu::kGemmBlock * stride, smaller(cpu::kGemmBlock, count - i), args.scale,
                                  largest);
  const f32 m = largest_lane<Lanes>(largest);

  F32 chain[kVectors];
  for (i64 v = 0; v < kVectors; ++v) chain[v] = Lanes::zero();
  const i64 steps = round_up(count, cpu::kGemmStep);
  for (i64 i = 0; i < steps; i += kChains) {
    f32* p = first + i / cpu::kGemmBlock * stride + i % cpu::kGemmBlock;
#pragma GCC unroll 16
    for (i64 v = 0; v < kVectors; ++v) {
      const F32 e = cpu::exp_of<Lanes>(Lanes::load(p + v * Lanes::kCount) - Lanes::broadcast(m));
      Lanes::store(p + v * Lanes::kCount, e);
      chain[v] = chain[v] + e;
    }
  }
  alignas(kAlign) f32 chains[kChains];
  for (i64 v = 0; v < kVectors; ++v) Lanes::store(chains + v * Lanes::kCount, chain[v]);
  const f32 l = sum_of_chains(chains), inverse = 1.0f / l, lse = m + cpu::log_of(l);
  *args.lse.at(item.token, head) = lse;
  scratch.weights[h] = inverse * sink_factor(args.sink, head, lse);

  for (i64 i = 0; i < steps; i += Lanes::kCount) {
    f32* p = first + i / cpu::kGemmBlock * stride + i % cpu::kGemmBlock;
    const F32 e = Lanes::load(p);
    if (with_sums)
      Lanes::store(scratch.sums + i, Lanes::fma(e, Lanes::broadcast(inverse), Lanes::load(scratch.sums + i)));
    Lanes::store(p, Lanes::round_to_bf16(e));
  }
}

// ---- An item ----

GLM5_INLINE void store_absent(const SparseMlaAttentionArgs& args, const Item& item) {
  for (i64 h = item.first_head; h < item.first_head + item.heads; ++h) {
    *args.lse.at(item.token, h) = -__builtin_inff();
    for (i64 c = 0; c < args.out.shape[2]; ++c) *args.out.at(item.token, h, c) = bf16{0};
  }
}

GLM5_INLINE void store_probabilities(const SparseMlaAttentionArgs& args, i64 token, i64 count, const Scratch& scratch) {
  for (i64 j = 0; j < args.indices.shape[1]; ++j) *args.probabilities.at(token, j) = 0.0f;
  for (i64 i = 0; i < count; ++i) *args.probabilities.at(token, scratch.places[i]) = scratch.sums[i];
}

// A Kernel knows Lanes, how to bring the products of the queries with the keys to the scores (multiply_keys), and the
// products of the probabilities with the values to out (multiply_values).
template <class Kernel>
GLM5_INLINE void attend(const Task& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const SparseMlaAttentionArgs& args = task.args;
  const Sizes sizes{task.item_heads, args.q.shape[2], args.out.shape[2], args.indices.shape[1],
                    args.cache.bytes.exists()};
  const Scratch scratch(aligned(args.workspace.data) + thread * sizes.bytes(), sizes);
  const bool with_sums = args.probabilities.shape[0] > 0;
  Kernel::begin();
  for (i64 i = begin; i < end; ++i) {
    const Item item(task, i);
    const i64 count =
        args.is_paged
            ? list_present_paged(args, item.token, scratch.rows, scratch.places, scratch.decoded)
            : list_present(args.kv, args.indices, args.topk_length, item.token, scratch.rows, scratch.places);
    if (with_sums) {
      for (i64 s = 0; s < round_up(count, cpu::kGemmStep); ++s) scratch.sums[s] = 0.0f;
    }
    if (count == 0) {
      store_absent(args, item);
    } else {
      Kernel::multiply_keys(args, item, count, scratch);
      for (i64 h = 0; h < item.heads; ++h) softmax<typename Kernel::Lanes>(args, item, h, count, scratch, with_sums);
      Kernel::multiply_values(args, item, count, scratch);
    }
    if (with_sums) store_probabilities(args, item.token, count, scratch);
  }
  Kernel::end();
  cpu::restore_floats(before);
}

}  // namespace glm5::sparse_mla
