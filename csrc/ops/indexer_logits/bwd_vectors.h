// The gradient with vectors of any width. A panel of keys gives d for rows of (token, head) as in the forward pass; d
// becomes the factors m, and these are multiplied with keys (pass 1) or queries (pass 2), whose dim is in the lanes.
#pragma once

#include "cpu/float_environment.h"
#include "cpu/indexer_vectors.h"
#include "ops/indexer_logits/bwd.h"

namespace glm5::indexer_logits_bwd {

using indexer_vectors::multiply_rows;

// For Rows x 2 vectors, the chain over i < count of a[r * a_row + i * a_step] * b[i * b_step ...].
template <class Lanes, int Rows>
GLM5_INLINE void chain_of(const f32* a, i64 a_row, i64 a_step, const f32* b, i64 b_step, i64 count,
                          typename Lanes::F32 (&chain)[Rows][2]) {
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) chain[r][0] = chain[r][1] = Lanes::zero();
#pragma GCC unroll 4
  for (i64 i = 0; i < count; ++i) {
    const auto left = Lanes::load(b + i * b_step), right = Lanes::load(b + i * b_step + Lanes::kCount);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const auto x = Lanes::broadcast(a[r * a_row + i * a_step]);
      chain[r][0] = Lanes::fma(x, left, chain[r][0]);
      chain[r][1] = Lanes::fma(x, right, chain[r][1]);
    }
  }
}

// total[r][c] += the chain, for `rows` rows and `columns` columns (a multiple of two vectors), total_row apart.
template <class Lanes>
static void add_chains(const f32* a, i64 a_row, i64 a_step, const f32* b, i64 b_step, i64 count, i64 rows, i64 columns,
                       f32* total, i64 total_row) {
  for (i64 c = 0; c < columns; c += 2 * Lanes::kCount) {
    cpu::for_row_blocks<Lanes::kChainRows>(rows, [&]<int Rows>(cpu::RowCount<Rows>, i64 row) [[gnu::always_inline]] {
      typename Lanes::F32 chain[Rows][2];
      chain_of<Lanes, Rows>(a + row * a_row, a_row, a_step, b + c, b_step, count, chain);
#pragma GCC unroll 32
      for (int i = 0; i < 2 * Rows; ++i) {
        f32* to = total + (row + i / 2) * total_row + c + i % 2 * Lanes::kCount;
        Lanes::store(to, Lanes::load(to) + chain[i / 2][i % 2]);
      }
    });
  }
}

// g of a token for a panel's keys, and 1 where they are inside its window; else both are 0.
template <class Lanes>
GLM5_INLINE void load_g(const IndexerLogitsBwdArgs& args, i64 token, i64 key, const Scratch& scratch) {
  const Span span = span_of(args.operands, token, key, 2 * Lanes::kCount);
  for (i64 s = key; s < key + 2 * Lanes::kCount; ++s) {
    const bool is_inside = s >= span.begin && s < span.end;
    scratch.g[s - key] = is_inside ? g_of(args, token, s) : 0.0f;
    scratch.inside[s - key] = is_inside ? 1.0f : 0.0f;
  }
}

struct Problem {
  const IndexerLogitsBwdArgs& args;
  const Scratch& scratch;
  i64 heads, dim, padded_dim;

  GLM5_INLINE Problem(const IndexerLogitsBwdArgs& args, const Scratch& scratch)
      : args(args),
        scratch(scratch),
        heads(args.operands.q.shape[1]),
        dim(args.operands.q.shape[2]),
        padded_dim(round_up(dim, cpu::kGemmBlock)) {}
};

// d of a token's heads and a panel: factors for the keys at `place` of the block, and with `WithSums` the chains of
// d_weights. row: the token's first row among `rows` packed ones.
template <class Lanes, bool WithSums>
static void load_factors(const Problem& problem, i64 token, i64 row, i64 rows, const f32* panel, i64 place) {
  constexpr i64 kCount = Lanes::kCount;
  const Scratch& scratch = problem.scratch;
  const auto body = [&]<int Rows>(cpu::RowCount<Rows>, i64 h) [[gnu::always_inline]] {
    using F32 = typename Lanes::F32;
    F32 d[Rows][2];
    multiply_rows<Lanes, Rows>(scratch.queries + (row + h) * cpu::kGemmBlock, rows, panel, problem.dim, d);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * Rows; ++i) {
      const F32 x = d[i / 2][i % 2], g = Lanes::load(scratch.g + i % 2 * kCount);
      const F32 weight = Lanes::broadcast(*problem.args.operands.weights.at(token, h + i / 2));
      f32* factors = scratch.factors + (row + h + i / 2) * kKeys + place + i % 2 * kCount;
      Lanes::store(factors, Lanes::where_positive(x, g * weight));
      if constexpr (WithSums) {
        // 16 chains: two vectors of 8, or one of 16 that takes both.
        f32* sums = scratch.sums + (row + h + i / 2) * kSums + i % 2 * kCount % kSums;
        const F32 r = Lanes::where_positive(Lanes::load(scratch.inside + i % 2 * kCount), x + Lanes::abs(x));
        Lanes::store(sums, Lanes::fma(g, r, Lanes::load(sums)));
      }
    }
  };
  cpu::for_row_blocks<Lanes::kStepRows>(problem.heads, body);
}

// ---- Pass 1: the queries ----

// The keys of a block as rows of f32, [key][padded dim].
template <class T>
GLM5_INLINE void load_key_rows(const Problem& problem, i64 key, i64 keys) {
  const Tensor<const T, 2> k = problem.args.operands.k.as<T>();
  avx2::pack(problem.scratch.keys, problem.padded_dim, k.at(key, 0), k.stride[0], 1, keys, problem.dim, keys,
             problem.padded_dim, 0);
}

template <class Lanes, class T>
static void query_block(const Problem& problem, i64 first, i64 tokens, i64 block) {
  constexpr i64 kPanel = 2 * Lanes::kCount;
  const IndexerOperands& operands = problem.args.operands;
  const i64 heads = problem.heads, keys = smaller(kKeys, operands.keys() - block);
  for (i64 key = block; key < block + keys; key += kPanel) {
    bool is_loaded = false;
    for (i64 t = 0; t < tokens; ++t) {
      if (span_of(operands, first + t, key, kPanel).is_empty()) continue;
      if (!is_loaded)
        indexer_vectors::pack_panel<Lanes, T>(operands, cpu::indexer_keys(operands, first, key), key,
                                              problem.scratch.panels);
      is_loaded = true;
      load_g<Lanes>(problem.args, first + t, key, problem.scratch);
      load_factors<Lanes, true>(problem, first + t, t * heads, tokens * heads, problem.scratch.panels, key - block);
    }
  }
  if (problem.args.operands.q.is_e4m3) return;
  load_key_rows<T>(problem, block, keys);
  for (i64 t = 0; t < tokens; ++t) {
    const Span span = span_of(operands, first + t, block, kKeys);
    if (span.is_empty()) continue;
    const i64 skipped = span.begin - block;
    add_chains<Lanes>(problem.scratch.factors + t * heads * kKeys + skipped, kKeys, 1,
                      problem.scratch.keys + skipped * problem.padded_dim, problem.padded_dim, span.end - span.begin,
                      heads, round_up(problem.dim, kPanel), problem.scratch.d_queries + t * heads * problem.padded_dim,
                      problem.padded_dim);
  }
}

template <class Lanes, class T>
static void query_group(const Problem& problem, i64 first, i64 tokens) {
  const IndexerLogitsBwdArgs& args = problem.args;
  const Scratch& scratch = problem.scratch;
  const i64 rows = tokens * problem.heads;
  for (i64 i = 0; i < rows * problem.padded_dim; ++i) scratch.d_queries[i] = 0.0f;
  for (i64 i = 0; i < rows * kSums; ++i) scratch.sums[i] = 0.0f;
  indexer_vectors::pack_rows(args.operands.q.as<T>(), first, tokens, scratch.queries);
  for (i64 block = 0; block < args.operands.keys(); block += kKeys) {
    bool is_seen = false;
    for (i64 t = first; t < first + tokens; ++t) is_seen |= !span_of(args.operands, t, block, kKeys).is_empty();
    if (is_seen) query_block<Lanes, T>(problem, first, tokens, block);
  }
  for (i64 row = 0; row < rows; ++row) {
    const i64 token = first + row / problem.heads, head = row % problem.heads;
    *args.d_weights.at(token, head) = 0.5f * sum_of_chains(scratch.sums + row * kSums);
    if (!args.operands.q.is_e4m3)
      avx2::store_row(args.d_q.at(token, head, 0), scratch.d_queries + row * problem.padded_dim, problem.dim, false);
  }
}

template <class Lanes>
GLM5_INLINE void query_gradients(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const i64 tokens = args.operands.q.shape[0], heads = args.operands.q.shape[1], group = group_of(heads);
  const Scratch scratch(args.workspace, heads, args.operands.q.shape[2], thread);
  const Problem problem(args, scratch);
  for (i64 i = begin; i < end; ++i) {
    // Late tokens, which see most keys in a causal window, come first.
    const i64 first = (ceil_div(tokens, group) - 1 - i) * group;
    if (args.operands.q.is_e4m3) {
      query_group<Lanes, e4m3>(problem, first, smaller(group, tokens - first));
    } else {
      query_group<Lanes, bf16>(problem, first, smaller(group, tokens - first));
    }
  }
  cpu::restore_floats(before);
}

// ---- Pass 2: the keys ----

template <class Lanes>
static void key_block(const Problem& problem, i64 block) {
  constexpr i64 kPanel = 2 * Lanes::kCount;
  const IndexerOperands& operands = problem.args.operands;
  const Scratch& scratch = problem.scratch;
  const i64 keys = smaller(kKeys, operands.keys() - block), panel_values = kPanel * problem.padded_dim;
  for (i64 i = 0; i < keys * problem.padded_dim; ++i) scratch.d_keys[i] = 0.0f;
  for (i64 key = 0; key < keys; key += kPanel)
    indexer_vectors::pack_panel<Lanes, bf16>(operands, cpu::indexer_keys(operands, 0, block + key), block + key,
                                             scratch.panels + key / kPanel * panel_values);
  for (i64 t = 0; t < operands.q.shape[0]; ++t) {
    const Span span = span_of(operands, t, block, kKeys);
    if (span.is_empty()) continue;
    indexer_vectors::pack_rows(operands.q.as<bf16>(), t, 1, scratch.queries);
    for (i64 key = (span.begin - block) / kPanel * kPanel; key < span.end - block; key += kPanel) {
      load_g<Lanes>(problem.args, t, block + key, scratch);
      load_factors<Lanes, false>(problem, t, 0, problem.heads, scratch.panels + key / kPanel * panel_values, key);
    }
    const i64 skipped = span.begin - block;
    for (i64 c = 0; c < problem.dim; c += cpu::kGemmBlock)
      add_chains<Lanes>(scratch.factors + skipped, 1, kKeys, scratch.queries + c * problem.heads, cpu::kGemmBlock,
                        problem.heads, span.end - span.begin,
                        round_up(smaller(cpu::kGemmBlock, problem.dim - c), kPanel),
                        scratch.d_keys + skipped * problem.padded_dim + c, problem.padded_dim);
  }
  for (i64 s = 0; s < keys; ++s)
    avx2::store_row(problem.args.d_k.at(block + s, 0), scratch.d_keys + s * problem.padded_dim, problem.dim, false);
}

template <class Lanes>
GLM5_INLINE void key_gradients(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const Scratch scratch(args.workspace, args.operands.q.shape[1], args.operands.q.shape[2], thread);
  const Problem problem(args, scratch);
  for (i64 i = begin; i < end; ++i) key_block<Lanes>(problem, i * kKeys);
  cpu::restore_floats(before);
}

}  // namespace glm5::indexer_logits_bwd
