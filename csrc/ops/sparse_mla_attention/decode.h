// sparse_mla_decode with schedule "fast": a second summation tree for the same values, made for few tokens that name
// keys in a cache. Keys keep the precision of the cache: what a byte means is e4m3 * scale, never rounded to bf16.
//
// The tree. A row's places are cut into tiles of 64, whatever the batch, the heads and the machine:
//   s(i)    = scale * (q[t, h] . key i) at present places of the tile, -inf at absent ones
//   m_tile  = the largest s(i); NaN does not count.  p(i) = exp(s(i) - m_tile), with 0 for an m_tile of -inf
//   l_tile  = the sum of p(i);  o_tile = the sum of p(i) * v(i)
// and tiles are merged in ascending order, starting from m = -inf, l = 0, o = 0:
//   m' = max(m, m_tile);  f = exp(m - m');  g = exp(m_tile - m'), with 0 for an m' of -inf
//   l  = fma(l, f, l_tile * g);  o = fma(o, f, o_tile * g);  m = m'
// At the end lse = m + log(l) and out = bf16(o * ((1 / l) * factor)); for an l of 0: -inf and 0.
//
// Nothing but the row itself decides what is added to what, so that tiles may be worked on one after the other by one
// thread or block, which merges on the way, or by several at a time, whose l_tile and o_tile a second pass merges: the
// bits are the same. So few tokens can be spread over the machine, and many need no partial results.
//
// Inside a tile, on CPU, in f32 (subnormal numbers count as zero):
//   key     = the cache's bf16, or e4m3 * scale
//   q . key = 16 chains of fused multiply-adds, chain c over dims c, c + 16, ..; folded 8, 4, 2, 1
//   l_tile  = 16 chains, chain c over places c, c + 16, ..; folded likewise;  o_tile = one chain over all 64 places
// On sm_90a: decode_sm90.cu.
#pragma once

#include "cpu/exp.h"
#include "cpu/float_environment.h"
#include "ops/sparse_mla_attention/items.h"

namespace glm5::sparse_mla {

constexpr i64 kDecodeTile = 64;
// f32 from one decoded key, or query, to the next: an odd number of cache lines, so that a column of them lies in
// different sets of the L1 cache.
constexpr i64 kDecodeStride = kMlaDim + 16;

// Tokens [first_token, first_token + tokens). Items: tokens; or, where tiles are worked on by several threads, the
// (token, tile) whose partial results are computed, then the (token, head) whose partial results are merged.
struct DecodeTask {
  enum class Pass : int { whole, tiles, merge };

  SparseMlaAttentionArgs args;
  i64 first_token, tokens;
  Pass pass;
  f32* partial;  // o_tile: [token][tile][head][512]
  f32* sums;     // m_tile and l_tile: [token][tile][head][2]
  u8* scratch;

  GLM5_INLINE i64 heads() const { return args.q.shape[1]; }
  GLM5_INLINE i64 tiles() const { return ceil_div(args.indices.shape[1], kDecodeTile); }
  GLM5_INLINE i64 items() const {
    return tokens * (pass == Pass::whole ? 1 : pass == Pass::tiles ? tiles() : heads());
  }
  GLM5_INLINE f32* partial_of(i64 token, i64 tile) const {
    return partial + ((token - first_token) * tiles() + tile) * heads() * kMlaLatent;
  }
  GLM5_INLINE f32* sums_of(i64 token, i64 tile) const {
    return sums + ((token - first_token) * tiles() + tile) * heads() * 2;
  }
};

// Where the keys of a tile lie; null: absent.
struct DecodeTile {
  const u8* keys[kDecodeTile];
  i64 present;

  GLM5_INLINE void find(const SparseMlaAttentionArgs& args, i64 token, i64 tile) {
    const i64 length = row_length(args.indices, args.topk_length, token);
    present = 0;
    for (i64 i = 0; i < kDecodeTile; ++i) {
      const i64 place = tile * kDecodeTile + i;
      const i64 slot = place < length ? args.slot_of(token, *args.indices.at(token, place)) : -1;
      keys[i] = slot < 0                      ? nullptr
                : args.cache.bytes.exists() ? args.cache.bytes_of(slot)
                                              : reinterpret_cast<const u8*>(args.cache.values_of(slot));
      present += slot >= 0 ? 1 : 0;
    }
  }
};

// Scratch of one thread.
struct DecodeScratch {
  f32 *keys, *queries;      // as f32: [64][kDecodeStride], [heads][kDecodeStride]
  f32* weights;             // scores, then p: [heads][64]
  f32 *largest, *sum;       // [heads]: m and l, of the tile or so far
  f32 *older, *newer;       // [heads]: f and g
  f32* out;                 // [heads][512]: o
  DecodeTile *tile, *next;

  GLM5_INLINE static i64 bytes(i64 heads) {
    const i64 floats = kDecodeTile * kDecodeStride + heads * (kDecodeStride + kDecodeTile + 4 + kMlaLatent);
    return round_up(4 * floats + 2 * static_cast<i64>(sizeof(DecodeTile)), kAlign) + 16 * kAlign;
  }

  GLM5_INLINE DecodeScratch(u8* own, i64 heads) {
    keys = take<f32>(own, kDecodeTile * kDecodeStride);
    queries = take<f32>(own, heads * kDecodeStride);
    weights = take<f32>(own, heads * kDecodeTile);
    largest = take<f32>(own, heads);
    sum = take<f32>(own, heads);
    older = take<f32>(own, heads);
    newer = take<f32>(own, heads);
    out = take<f32>(own, heads * kMlaLatent);
    tile = take<DecodeTile>(own, 1);
    next = take<DecodeTile>(own, 1);
  }
};

// ---- A tile ----

// All keys of the tile as f32, zeros where absent; those of the next tile are asked for on the way.
template <class Kernel>
GLM5_INLINE void decode_keys(const SparseMlaAttentionArgs& args, const DecodeScratch& scratch) {
  const bool is_bytes = args.cache.bytes.exists();
  for (i64 i = 0; i < kDecodeTile; ++i) {
    f32* to = scratch.keys + i * kDecodeStride;
    const u8* key = scratch.tile->keys[i];
    if (const u8* next = scratch.next->keys[i])
      for (i64 byte = 0; byte < (is_bytes ? kMlaTokenBytes : 2 * kMlaDim); byte += 64)
        __builtin_prefetch(next + byte, 0, 2);
    if (key == nullptr) {
      for (i64 k = 0; k < kMlaDim; ++k) to[k] = 0.0f;
    } else if (is_bytes) {
      f32 scales[kMlaGroups];
      __builtin_memcpy(scales, key + kMlaScalesAt, sizeof(scales));
      for (i64 g = 0; g < kMlaGroups; ++g)
        Kernel::load(reinterpret_cast<const e4m3*>(key) + g * kFp8Group, kFp8Group, scales[g], to + g * kFp8Group);
      Kernel::load(reinterpret_cast<const bf16*>(key + kMlaRopeAt), kMlaRope, to + kMlaLatent);
    } else {
      Kernel::load(reinterpret_cast<const bf16*>(key), kMlaDim, to);
    }
  }
}

// Products become p; m_tile and l_tile.
template <class Lanes>
GLM5_INLINE void weigh(const DecodeTile& tile, f32 scale, f32* row, f32* largest, f32* sum) {
  using F32 = typename Lanes::F32;
  constexpr i64 kVectors = kChains / Lanes::kCount;
  alignas(kAlign) f32 lane[kChains];
  F32 most = Lanes::broadcast(-__builtin_inff());
  for (i64 i = 0; i < kDecodeTile; ++i) row[i] = row[i] * scale;
  if (tile.present < kDecodeTile) {
    for (i64 i = 0; i < kDecodeTile; ++i) row[i] = tile.keys[i] == nullptr ? -__builtin_inff() : row[i];
  }
  for (i64 i = 0; i < kDecodeTile; i += Lanes::kCount) most = Lanes::larger_of(Lanes::load(row + i), most);
  Lanes::store(lane, most);
  f32 m = -__builtin_inff();
  for (i64 i = 0; i < Lanes::kCount; ++i) m = lane[i] > m ? lane[i] : m;
  const f32 base = m == -__builtin_inff() ? 0.0f : m;
  F32 chain[kVectors];
  for (i64 v = 0; v < kVectors; ++v) chain[v] = Lanes::zero();
  for (i64 i = 0; i < kDecodeTile; i += kChains) {
#pragma GCC unroll 16
    for (i64 v = 0; v < kVectors; ++v) {
      f32* p = row + i + v * Lanes::kCount;
      const F32 e = cpu::exp_of<Lanes>(Lanes::load(p) - Lanes::broadcast(base));
      Lanes::store(p, e);
      chain[v] = chain[v] + e;
    }
  }
  for (i64 v = 0; v < kVectors; ++v) Lanes::store(lane + v * Lanes::kCount, chain[v]);
  *largest = m;
  *sum = sum_of_chains(lane);
}

// ---- Merging ----

// One tile more for one head: f and g.
GLM5_INLINE void advance(f32 m_tile, f32 l_tile, f32* m, f32* l, f32* older, f32* newer) {
  const f32 most = m_tile > *m ? m_tile : *m;
  const f32 base = most == -__builtin_inff() ? 0.0f : most;
  *older = cpu::exp_of<cpu::ScalarLanes>(*m - base);
  *newer = cpu::exp_of<cpu::ScalarLanes>(m_tile - base);
  *l = __builtin_fmaf(*l, *older, l_tile * *newer);
  *m = most;
}

template <class Lanes>
GLM5_INLINE typename Lanes::F32 merged(typename Lanes::F32 o, typename Lanes::F32 o_tile, const f32& f, const f32& g) {
  return Lanes::fma(o, Lanes::broadcast(f), o_tile * Lanes::broadcast(g));
}

// lse of a head, and its out from o.
template <class Kernel>
GLM5_INLINE void finish(const SparseMlaAttentionArgs& args, i64 token, i64 head, f32 m, f32 l, const f32* o) {
  const f32 lse = l == 0.0f ? -__builtin_inff() : m + cpu::log_of(l);
  const f32 weight = l == 0.0f ? 0.0f : 1.0f / l * sink_factor(args.sink, head, lse);
  *args.lse.at(token, head) = lse;
  Kernel::store(o, weight, args.out.at(token, head, 0));
}

// ---- The passes ----

// Of one tile: p, m_tile, l_tile, and by put(head, column, o_tile) o_tile.
template <class Kernel, class Weighed, class Put>
GLM5_INLINE void attend_tile(const DecodeTask& task, const DecodeScratch& scratch, const Weighed& weighed,
                             const Put& put) {
  decode_keys<Kernel>(task.args, scratch);
  Kernel::multiply_keys(scratch, task.heads());
  for (i64 h = 0; h < task.heads(); ++h) {
    f32 m, l;
    weigh<typename Kernel::Lanes>(*scratch.tile, task.args.scale, scratch.weights + h * kDecodeTile, &m, &l);
    weighed(h, m, l);
  }
  Kernel::multiply_values(scratch, task.heads(), put);
}

template <class Kernel>
GLM5_INLINE void load_queries(const DecodeTask& task, i64 token, const DecodeScratch& scratch) {
  for (i64 h = 0; h < task.heads(); ++h)
    Kernel::load(task.args.q.at(token, h, 0), kMlaDim, scratch.queries + h * kDecodeStride);
}

template <class Kernel>
GLM5_INLINE void attend_whole(const DecodeTask& task, i64 token, DecodeScratch& scratch) {
  using Lanes = typename Kernel::Lanes;
  load_queries<Kernel>(task, token, scratch);
  for (i64 h = 0; h < task.heads(); ++h) {
    scratch.largest[h] = -__builtin_inff();
    scratch.sum[h] = 0.0f;
  }
  for (i64 i = 0; i < task.heads() * kMlaLatent; ++i) scratch.out[i] = 0.0f;
  scratch.next->find(task.args, token, 0);
  for (i64 tile = 0; tile < task.tiles(); ++tile) {
    DecodeTile* now = scratch.next;
    scratch.next = scratch.tile;
    scratch.tile = now;
    scratch.next->find(task.args, token, tile + 1);
    if (now->present == 0) continue;
    attend_tile<Kernel>(
        task, scratch,
        [&](i64 h, f32 m, f32 l) {
          advance(m, l, scratch.largest + h, scratch.sum + h, scratch.older + h, scratch.newer + h);
        },
        [&](i64 h, i64 column, typename Lanes::F32 o_tile) [[gnu::always_inline]] {
          f32* o = scratch.out + h * kMlaLatent + column;
          Lanes::store(o, merged<Lanes>(Lanes::load(o), o_tile, scratch.older[h], scratch.newer[h]));
        });
  }
  for (i64 h = 0; h < task.heads(); ++h)
    finish<Kernel>(task.args, token, h, scratch.largest[h], scratch.sum[h], scratch.out + h * kMlaLatent);
}

// One tile alone. An empty one has an l_tile of 0 and no o_tile.
template <class Kernel>
GLM5_INLINE void attend_apart(const DecodeTask& task, i64 token, i64 tile, const DecodeScratch& scratch) {
  using Lanes = typename Kernel::Lanes;
  f32 *sums = task.sums_of(token, tile), *partial = task.partial_of(token, tile);
  if (scratch.tile->present == 0) {
    for (i64 h = 0; h < task.heads(); ++h) sums[2 * h] = -__builtin_inff(), sums[2 * h + 1] = 0.0f;
    return;
  }
  attend_tile<Kernel>(
      task, scratch, [&](i64 h, f32 m, f32 l) { sums[2 * h] = m, sums[2 * h + 1] = l; },
      [&](i64 h, i64 column, typename Lanes::F32 o_tile) [[gnu::always_inline]] {
        Lanes::store(partial + h * kMlaLatent + column, o_tile);
      });
}

template <class Kernel>
GLM5_INLINE void merge_tiles(const DecodeTask& task, i64 token, i64 head) {
  using Lanes = typename Kernel::Lanes;
  alignas(kAlign) f32 o[kMlaLatent];
  for (i64 c = 0; c < kMlaLatent; ++c) o[c] = 0.0f;
  f32 m = -__builtin_inff(), l = 0.0f;
  for (i64 tile = 0; tile < task.tiles(); ++tile) {
    const f32* sums = task.sums_of(token, tile) + 2 * head;
    if (sums[1] == 0.0f) continue;
    f32 older, newer;
    advance(sums[0], sums[1], &m, &l, &older, &newer);
    const f32* o_tile = task.partial_of(token, tile) + head * kMlaLatent;
    for (i64 c = 0; c < kMlaLatent; c += Lanes::kCount)
      Lanes::store(o + c, merged<Lanes>(Lanes::load(o + c), Lanes::load(o_tile + c), older, newer));
  }
  finish<Kernel>(task.args, token, head, m, l, o);
}

// A Kernel knows Lanes, how numbers become f32 (load) and out (store), and the two products of a tile: q . key
// (multiply_keys) and o_tile (multiply_values).
template <class Kernel>
GLM5_INLINE void decode(const DecodeTask& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  DecodeScratch scratch(task.scratch + thread * DecodeScratch::bytes(task.heads()), task.heads());
  const i64 tiles = task.tiles();
  if (task.pass == DecodeTask::Pass::tiles)
    scratch.next->find(task.args, task.first_token + begin / tiles, begin % tiles);
  for (i64 i = begin; i < end; ++i) {
    if (task.pass == DecodeTask::Pass::whole) {
      attend_whole<Kernel>(task, task.first_token + i, scratch);
    } else if (task.pass == DecodeTask::Pass::merge) {
      merge_tiles<Kernel>(task, task.first_token + i / task.heads(), i % task.heads());
    } else {
      const i64 token = task.first_token + i / tiles, next = smaller(i + 1, end - 1);
      if (i == begin || i % tiles == 0) load_queries<Kernel>(task, token, scratch);
      DecodeTile* now = scratch.next;
      scratch.next = scratch.tile;
      scratch.tile = now;
      scratch.next->find(task.args, task.first_token + next / tiles, next % tiles);
      attend_apart<Kernel>(task, token, i % tiles, scratch);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::sparse_mla
