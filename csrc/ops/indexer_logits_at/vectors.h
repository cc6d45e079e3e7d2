// The gradient of indexer_logits_at with vectors of any width (Lanes: cpu/gemm_vectors.h): three small products for
// each 64 keys of a token. d = q k^T gives a and the chains of d_weights; d_q += a k; the rows of d_k are a^T q.
#pragma once

#include "cpu/indexer_vectors.h"
#include "ops/indexer_logits_at/items.h"

namespace glm5::at {

template <class Lanes>
constexpr i64 kPanelOf = 2 * Lanes::kCount;

// The token's queries twice: rows for the dot products, panels of [head][dim] for d_k.
template <class Lanes, class T>
GLM5_INLINE void load_queries(const IndexerOperands& operands, i64 token, const BwdScratch& scratch) {
  const Tensor<const T, 3> q = operands.q.as<T>();
  const i64 heads = q.shape[1], dim = q.shape[2];
  for (i64 first = 0; first < dim; first += cpu::kGemmBlock)
    avx2::pack(scratch.queries + first * heads, cpu::kGemmBlock, q.at(token, 0, first), q.stride[1], 1, heads,
               smaller(cpu::kGemmBlock, dim - first), heads, cpu::kGemmBlock, 0);
  for (i64 first = 0; first < scratch.dim; first += kPanelOf<Lanes>)
    avx2::pack(scratch.query_panels + first * scratch.heads, kPanelOf<Lanes>, q.at(token, 0, first), q.stride[1], 1,
               heads, larger(0, smaller(kPanelOf<Lanes>, dim - first)), scratch.heads, kPanelOf<Lanes>, 0);
  for (i64 h = 0; h < heads; ++h) scratch.weights[h] = *operands.weights.at(token, h);
}

// 64 keys as they are, zeros for absent ones.
template <class T>
GLM5_INLINE T* gather_keys(const IndexerLogitsAtBwdArgs& args, i64 token, i64 first, const BwdScratch& scratch) {
  const Tensor<const T, 2> k = args.operands.k.as<T>();
  const i64 dim = k.shape[1], topk = args.indices.shape[1];
  T* rows = reinterpret_cast<T*>(scratch.keys);
  for (i64 j = 0; j < kAtChunk; ++j) {
    const i64 key = first + j < topk ? key_at(args.indices, k.shape[0], token, first + j) : -1;
    if (key >= 0) {
      __builtin_memcpy(rows + j * dim, k.at(key, 0), dim * sizeof(T));
    } else {
      __builtin_memset(static_cast<void*>(rows + j * dim), 0, dim * sizeof(T));
    }
  }
  return rows;
}

// d of `Rows` heads against a panel of keys; then their chains of d_weights, and a.
template <class Lanes, int Rows>
GLM5_INLINE void weigh(const BwdScratch& scratch, i64 heads, i64 dim, i64 row, i64 first_key) {
  using F32 = typename Lanes::F32;
  constexpr i64 kCount = Lanes::kCount;
  F32 d[Rows][2], step[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) d[r][0] = d[r][1] = Lanes::zero();
  const f32* rows = scratch.queries + row * cpu::kGemmBlock;
#pragma GCC unroll 1
  for (i64 block = 0; block < dim; block += cpu::kGemmBlock, rows += heads * cpu::kGemmBlock) {
#pragma GCC unroll 1
    for (i64 k = 0; k < smaller(cpu::kGemmBlock, dim - block); k += cpu::kGemmStep) {
      cpu::multiply_step<Lanes, Rows>(rows + k, scratch.dot_panel + (block + k) * 2 * kCount, step);
#pragma GCC unroll 16
      for (int i = 0; i < 2 * Rows; ++i) d[i / 2][i % 2] += step[i / 2][i % 2];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    const F32 weight = Lanes::broadcast(scratch.weights[row + r]), half = Lanes::broadcast(kHalf);
#pragma GCC unroll 2
    for (i64 side = 0; side < 2; ++side) {
      const i64 j = first_key + side * kCount;
      const F32 g = Lanes::load(scratch.g + j), relu = (d[r][side] + Lanes::abs(d[r][side])) * half;
      f32* chain = scratch.chains + (row + r) * kAtChains + j % kAtChains;
      Lanes::store(chain, Lanes::fma(g, relu, Lanes::load(chain)));
      const F32 gated = d[r][side] > Lanes::zero() ? g * weight : Lanes::zero();
      Lanes::store(scratch.a + (row + r) * cpu::kGemmBlock + j, gated);
    }
  }
}

// d_q += a k, both over the 64 keys.
template <class Lanes>
static void add_to_d_q(const BwdScratch& scratch, i64 heads, i64 dim) {
  constexpr i64 kCount = Lanes::kCount, kPanel = 2 * kCount;
  for (i64 first = 0; first < dim; first += kPanel) {
    cpu::for_row_blocks<Lanes::kChainRows>(heads, [&]<int Rows>(cpu::RowCount<Rows>, i64 row) [[gnu::always_inline]] {
      typename Lanes::F32 chain[Rows][2];
      cpu::multiply_chain<Lanes, Rows>(scratch.a + row * cpu::kGemmBlock, scratch.key_panels + first * kAtChunk,
                                       kAtChunk, chain);
      f32* total = scratch.d_q + first * scratch.heads + row * kPanel;
      for (int r = 0; r < Rows; ++r, total += kPanel) {
        Lanes::store(total, Lanes::load(total) + chain[r][0]);
        Lanes::store(total + kCount, Lanes::load(total + kCount) + chain[r][1]);
      }
    });
  }
}

// The rows of d_k: a^T q, over the heads.
template <class Lanes>
static void contribute(const Block& block, i64 token, i64 first_place, const BwdScratch& scratch, i64 heads, i64 dim) {
  constexpr i64 kCount = Lanes::kCount, kPanel = 2 * kCount;
  const i64 places = smaller(kAtChunk, block.args.indices.shape[1] - first_place);
  for (i64 first_head = 0; first_head < heads; first_head += cpu::kGemmBlock) {
    const i64 here = smaller(cpu::kGemmBlock, heads - first_head);
    avx2::pack(scratch.a_turned, cpu::kGemmBlock, scratch.a + first_head * cpu::kGemmBlock, 1, cpu::kGemmBlock, places,
               here, kAtChunk, cpu::kGemmBlock, 0);
    for (i64 first = 0; first < dim; first += kPanel) {
      const f32* panel = scratch.query_panels + first * scratch.heads + first_head * kPanel;
      cpu::for_row_blocks<Lanes::kChainRows>(places, [&]<int Rows>(cpu::RowCount<Rows>, i64 j) [[gnu::always_inline]] {
        typename Lanes::F32 chain[Rows][2];
        cpu::multiply_chain<Lanes, Rows>(scratch.a_turned + j * cpu::kGemmBlock, panel, round_up(here, 8), chain);
        for (int r = 0; r < Rows; ++r) {
          f32* row = block.contribution(token, first_place + j + r) + first;
          for (int side = 0; side < 2; ++side) {
            if (first_head > 0) chain[r][side] = Lanes::load(row + side * kCount) + chain[r][side];
            Lanes::store(row + side * kCount, chain[r][side]);
          }
        }
      });
    }
  }
}

template <class Lanes, class T>
static void differentiate_token(const Block& block, i64 token, const BwdScratch& scratch) {
  constexpr i64 kPanel = kPanelOf<Lanes>;
  const IndexerLogitsAtBwdArgs& args = block.args;
  const i64 heads = args.operands.q.shape[1], dim = args.operands.q.shape[2], topk = args.indices.shape[1];
  const bool with_qk = sizeof(T) == 2;
  load_queries<Lanes, T>(args.operands, token, scratch);
  for (i64 i = 0; i < heads * kAtChains; ++i) scratch.chains[i] = 0;
  for (i64 i = 0; with_qk && i < scratch.heads * scratch.dim; ++i) scratch.d_q[i] = 0;
  for (i64 first = 0; first < topk; first += kAtChunk) {
    load_gradients(args, token, first, scratch.g);
    const T* rows = gather_keys<T>(args, token, first, scratch);
    for (i64 key = 0; key < kAtChunk; key += kPanel) {
      avx2::pack(scratch.dot_panel, kPanel, rows + key * dim, 1, dim, dim, kPanel, round_up(dim, cpu::kGemmStep),
                 kPanel, 0);
      cpu::for_row_blocks<Lanes::kStepRows>(heads, [&]<int Rows>(cpu::RowCount<Rows>, i64 row) [[gnu::always_inline]] {
        weigh<Lanes, Rows>(scratch, heads, dim, row, key);
      });
    }
    if (!with_qk) continue;
    for (i64 column = 0; column < dim; column += kPanel)
      avx2::pack(scratch.key_panels + column * kAtChunk, kPanel, rows + column, dim, 1, kAtChunk,
                 smaller(kPanel, dim - column), kAtChunk, kPanel, 0);
    add_to_d_q<Lanes>(scratch, heads, dim);
    contribute<Lanes>(block, token, first, scratch, heads, dim);
  }
  for (i64 h = 0; h < heads; ++h) *args.d_weights.at(token, h) = sum_of_chains(scratch.chains + h * kAtChains);
  for (i64 h = 0; with_qk && h < heads; ++h) {
    for (i64 i = 0; i < dim; ++i)
      *args.d_q.at(token, h, i) = to_bf16(scratch.d_q[i / kPanel * kPanel * scratch.heads + h * kPanel + i % kPanel]);
  }
}

template <class Lanes>
GLM5_INLINE void differentiate(const Block& block, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const i64 heads = block.args.operands.q.shape[1], dim = block.args.operands.q.shape[2];
  const BwdScratch scratch(block.scratch + thread * round_up(BwdScratch::floats(heads, dim) * 4, kAlign), heads, dim);
  for (i64 t = block.first_token + begin; t < block.first_token + end; ++t) {
    if (block.args.operands.q.is_e4m3) {
      differentiate_token<Lanes, e4m3>(block, t, scratch);
    } else {
      differentiate_token<Lanes, bf16>(block, t, scratch);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::at
