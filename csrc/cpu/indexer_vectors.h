// Scores with vectors of any width (Lanes: cpu/gemm_vectors.h). A panel is two vectors of keys as f32, transposed into
// the L1 cache; rows of queries, three (AVX-512: six) at a time, come from the L2 cache. A row's product with the panel
// never leaves the registers: it goes into the sums of its token, [token][4][panel], at once.
#pragma once

#include "cpu/avx2.h"
#include "cpu/gemm_vectors.h"
#include "cpu/indexer.h"

namespace glm5::indexer_vectors {

// The queries of `tokens` tokens as f32, [block of 128 dim][row][128].
template <class T>
GLM5_INLINE void pack_rows(const Tensor<const T, 3>& q, i64 first_token, i64 tokens, f32* packed) {
  const i64 heads = q.shape[1], dim = q.shape[2];
  for (i64 first = 0; first < dim; first += cpu::kGemmBlock) {
    const i64 valid = smaller(cpu::kGemmBlock, dim - first);
    for (i64 t = 0; t < tokens; ++t, packed += heads * cpu::kGemmBlock)
      avx2::pack(packed, cpu::kGemmBlock, q.at(first_token + t, 0, first), q.stride[1], 1, heads, valid, heads,
                 round_up(valid, cpu::kGemmStep), 0);
  }
}

// Those of a group, with each row's weight and the place of its sum.
template <class Lanes, class T>
GLM5_INLINE void pack_queries(const IndexerOperands& operands, const cpu::IndexerItem& item,
                              const cpu::IndexerScratch& scratch) {
  const i64 heads = operands.q.shape[1];
  pack_rows(operands.q.as<T>(), item.first_token, item.tokens, reinterpret_cast<f32*>(scratch.queries));
  for (i64 t = 0; t < item.tokens; ++t) {
    for (i64 h = 0; h < heads; ++h) {
      scratch.weights[t * heads + h] = *operands.weights.at(item.first_token + t, h);
      scratch.places[t * heads + h] = static_cast<i32>((t * 4 + h / 2 % 4) * 2 * Lanes::kCount);
    }
  }
}

// The keys from `first` on, [dim][panel]; zero beyond the last.
template <class Lanes, class T>
GLM5_INLINE void pack_panel(const IndexerOperands& operands, const cpu::KeyRows& keys, i64 first, f32* panel) {
  constexpr i64 kPanel = 2 * Lanes::kCount;
  const i64 dim = operands.q.shape[2], valid = smaller(kPanel, operands.keys() - first);
  avx2::pack(panel, kPanel, static_cast<const T*>(keys.values), 1, keys.stride, dim, valid,
             round_up(dim, cpu::kGemmStep), kPanel, kPanel * keys.stride);
}

// The same with half their scales.
template <class Lanes, class T>
GLM5_INLINE void load_panel(const IndexerOperands& operands, i64 token, i64 first, const cpu::IndexerScratch& scratch) {
  constexpr i64 kPanel = 2 * Lanes::kCount;
  const i64 valid = smaller(kPanel, operands.keys() - first);
  const cpu::KeyRows keys = cpu::indexer_keys(operands, token, first);
  pack_panel<Lanes, T>(operands, keys, first, reinterpret_cast<f32*>(scratch.panel));
  for (i64 j = 0; j < kPanel; ++j)
    scratch.scales[j] = keys.scales == nullptr ? 0.5f : j < valid ? 0.5f * keys.scales[j * keys.scale_stride] : 0.0f;
}

// d of `Rows` rows from `a` on, packed as above, and a panel.
template <class Lanes, int Rows>
GLM5_INLINE void multiply_rows(const f32* a, i64 rows_of_group, const f32* panel, i64 dim,
                               typename Lanes::F32 (&d)[Rows][2]) {
  typename Lanes::F32 step[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) d[r][0] = d[r][1] = Lanes::zero();
#pragma GCC unroll 1
  for (i64 block = 0; block < dim; block += cpu::kGemmBlock, a += rows_of_group * cpu::kGemmBlock) {
#pragma GCC unroll 1
    for (i64 k = 0; k < smaller(cpu::kGemmBlock, dim - block); k += cpu::kGemmStep) {
      // The next rows come from the L2 cache: a quarter of them with each step.
      cpu::prefetch_lines<2 * Rows>(a + Rows * (cpu::kGemmBlock + k));
      cpu::multiply_step<Lanes, Rows>(a + k, panel + (block + k) * 2 * Lanes::kCount, step);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * Rows; ++i) d[i / 2][i % 2] += step[i / 2][i % 2];
    }
  }
}

// `Rows` rows of the group against the panel, into their sums.
template <class Lanes, int Rows>
GLM5_INLINE void add_rows(const cpu::IndexerScratch& scratch, i64 rows_of_group, i64 row, i64 dim) {
  using F32 = typename Lanes::F32;
  F32 d[Rows][2];
  multiply_rows<Lanes, Rows>(reinterpret_cast<const f32*>(scratch.queries) + row * cpu::kGemmBlock, rows_of_group,
                             reinterpret_cast<const f32*>(scratch.panel), dim, d);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    f32* sum = scratch.sums + scratch.places[row + r];
    const F32 weight = Lanes::broadcast(scratch.weights[row + r]);
    Lanes::store(sum, Lanes::fma(weight, d[r][0] + Lanes::abs(d[r][0]), Lanes::load(sum)));
    sum += Lanes::kCount;
    Lanes::store(sum, Lanes::fma(weight, d[r][1] + Lanes::abs(d[r][1]), Lanes::load(sum)));
  }
}

// Tokens [begin, end) of the item against the panel at `key`.
template <class Lanes>
static void score_run(const IndexerOperands& operands, const cpu::IndexerItem& item, i64 begin, i64 end, i64 key,
                      const cpu::IndexerScratch& scratch, const cpu::ScoreRows& scores) {
  constexpr i64 kCount = Lanes::kCount, kPanel = 2 * kCount;
  const i64 heads = operands.q.shape[1], dim = operands.q.shape[2];
  const i64 first = begin - item.first_token, last = end - item.first_token;
  for (i64 i = first * 4 * kPanel; i < last * 4 * kPanel; i += kCount) Lanes::store(scratch.sums + i, Lanes::zero());
  cpu::for_row_blocks<Lanes::kStepRows>(
      last * heads,
      [&]<int Rows>(cpu::RowCount<Rows>, i64 row)
          [[gnu::always_inline]] { add_rows<Lanes, Rows>(scratch, item.tokens * heads, row, dim); },
      first * heads);
  for (i64 t = first; t < last; ++t) {
    alignas(64) f32 row[kPanel];
    for (i64 half = 0; half < kPanel; half += kCount) {
      const f32* c = scratch.sums + t * 4 * kPanel + half;
      const auto even = Lanes::load(c) + Lanes::load(c + kPanel);
      const auto odd = Lanes::load(c + 2 * kPanel) + Lanes::load(c + 3 * kPanel);
      Lanes::store(row + half, (even + odd) * Lanes::load(scratch.scales + half));
    }
    cpu::indexer_store(operands, item, item.first_token + t, key, kPanel, row, scores);
  }
}

template <class Lanes, class T>
static void score_item(const IndexerOperands& operands, const cpu::IndexerItem& item,
                       const cpu::IndexerScratch& scratch, const cpu::ScoreRows& scores) {
  constexpr i64 kPanel = 2 * Lanes::kCount;
  const i64 end = item.first_token + item.tokens;
  if (cpu::indexer_span_of_all(operands, item, item.first_token, end).is_empty()) return;
  pack_queries<Lanes, T>(operands, item, scratch);
  for (i64 begin = item.first_token, next; begin < end; begin = next) {
    next = cpu::indexer_same_keys(operands, begin, end);
    const cpu::KeySpan span = cpu::indexer_span_of_all(operands, item, begin, next);
    for (i64 key = span.begin / kPanel * kPanel; key < span.end; key += kPanel) {
      bool is_loaded = false;
      cpu::for_runs_that_see(operands, begin, next, key, kPanel, [&](i64 first, i64 last) {
        if (!is_loaded) load_panel<Lanes, T>(operands, first, key, scratch);
        is_loaded = true;
        score_run<Lanes>(operands, item, first, last, key, scratch, scores);
      });
    }
  }
}

template <class Lanes>
struct Scorer {
  static constexpr bool kWithAmx = false;

  GLM5_INLINE static void score(const IndexerOperands& operands, const cpu::IndexerItem& item,
                                const cpu::IndexerScratch& scratch, const cpu::ScoreRows& scores) {
    if (operands.q.is_e4m3) {
      score_item<Lanes, e4m3>(operands, item, scratch, scores);
    } else {
      score_item<Lanes, bf16>(operands, item, scratch, scores);
    }
  }
};

}  // namespace glm5::indexer_vectors
