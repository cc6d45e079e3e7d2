// indexer_logits_at in portable C++: the trees spelled out.
#include "cpu/indexer_generic.h"
#include "ops/indexer_logits_at/items.h"

namespace glm5::generic {
namespace {

using at::Block;

// d of every head for one key, as in the forward pass.
template <class T>
void dots(const IndexerOperands& operands, i64 token, i64 key, const at::BwdScratch& scratch, f32* d) {
  const i64 heads = operands.q.shape[1], dim = operands.q.shape[2];
  Scorer::load_row<T>(operands.k.as<T>().at(key, 0), dim, scratch.keys);
  for (i64 h = 0; h < heads; ++h) {
    Scorer::load_row<T>(operands.q.as<T>().at(token, h, 0), dim, scratch.queries);
    d[h] = Scorer::dot(scratch.queries, scratch.keys, dim);
  }
}

template <class T>
void differentiate_token(const Block& block, i64 token, const at::BwdScratch& scratch) {
  const IndexerLogitsAtBwdArgs& args = block.args;
  const IndexerOperands& operands = args.operands;
  const i64 heads = operands.q.shape[1], dim = operands.q.shape[2], topk = args.indices.shape[1];
  f32 *d = scratch.a, *part = scratch.query_panels;
  const auto q = operands.q.as<T>();
  const auto k = operands.k.as<T>();
  for (i64 i = 0; i < heads * kAtChains; ++i) scratch.chains[i] = 0;
  for (i64 i = 0; i < heads * dim; ++i) scratch.d_q[i] = 0;
  for (i64 first = 0; first < topk; first += kAtChunk) {
    at::load_gradients(args, token, first, scratch.g);
    for (i64 i = 0; i < heads * dim; ++i) part[i] = 0;
    for (i64 j = 0; j < smaller(kAtChunk, topk - first); ++j) {
      const i64 key = at::key_at(args.indices, k.shape[0], token, first + j);
      if (key < 0) continue;
      const f32 g = scratch.g[j];
      dots<T>(operands, token, key, scratch, d);
      for (i64 h = 0; h < heads; ++h) {
        f32& chain = scratch.chains[h * kAtChains + j % kAtChains];
        chain = __builtin_fmaf(g, (d[h] + __builtin_fabsf(d[h])) * at::kHalf, chain);
        d[h] = d[h] > 0 ? g * *operands.weights.at(token, h) : 0.0f;
      }
      if constexpr (sizeof(T) == 1) continue;
      f32* row = block.contribution(token, first + j);
      for (i64 i = 0; i < dim; ++i) {
        for (i64 h = 0; h < heads; ++h)
          part[h * dim + i] = __builtin_fmaf(d[h], to_f32(*k.at(key, i)), part[h * dim + i]);
        for (i64 h = 0; h < heads; h += cpu::kGemmBlock) {
          f32 chain = 0;
          for (i64 own = h; own < smaller(h + cpu::kGemmBlock, heads); ++own)
            chain = __builtin_fmaf(d[own], to_f32(*q.at(token, own, i)), chain);
          row[i] = h == 0 ? chain : row[i] + chain;
        }
      }
    }
    for (i64 i = 0; i < heads * dim; ++i) scratch.d_q[i] += part[i];
  }
  for (i64 h = 0; h < heads; ++h) *args.d_weights.at(token, h) = at::sum_of_chains(scratch.chains + h * kAtChains);
  if constexpr (sizeof(T) == 2) {
    for (i64 h = 0; h < heads; ++h)
      for (i64 i = 0; i < dim; ++i) *args.d_q.at(token, h, i) = to_bf16(scratch.d_q[h * dim + i]);
  }
}

}  // namespace

void indexer_logits_at(const IndexerLogitsAtArgs& args, i64 begin, i64 end, i64 thread) {
  at::score_tokens<Scorer>(args, begin, end, thread);
}

void indexer_logits_at_bwd(const Block& block, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const i64 heads = block.args.operands.q.shape[1], dim = block.args.operands.q.shape[2];
  const i64 bytes = round_up(at::BwdScratch::floats(heads, dim) * 4, at::kAlign);
  const at::BwdScratch scratch(block.scratch + thread * bytes, heads, dim);
  for (i64 t = block.first_token + begin; t < block.first_token + end; ++t) {
    if (block.args.operands.q.is_e4m3) {
      differentiate_token<e4m3>(block, t, scratch);
    } else {
      differentiate_token<bf16>(block, t, scratch);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
