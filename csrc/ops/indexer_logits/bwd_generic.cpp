// The gradient's trees spelled out, one multiply-add at a time.
#include "cpu/float_environment.h"
#include "cpu/indexer_generic.h"
#include "ops/indexer_logits/bwd.h"

namespace glm5::generic {
namespace {

using namespace indexer_logits_bwd;

struct Problem {
  const IndexerLogitsBwdArgs& args;
  const Scratch& scratch;
  i64 heads, dim, padded_dim;

  Problem(const IndexerLogitsBwdArgs& args, const Scratch& scratch)
      : args(args),
        scratch(scratch),
        heads(args.operands.q.shape[1]),
        dim(args.operands.q.shape[2]),
        padded_dim(round_up(dim, cpu::kGemmBlock)) {}

  void load_query(i64 token, i64 head) const {
    const IndexerTensor<3>& q = args.operands.q;
    if (q.is_e4m3) {
      Scorer::load_row<e4m3>(q.as<e4m3>().at(token, head, 0), dim, scratch.queries);
    } else {
      Scorer::load_row<bf16>(q.as<bf16>().at(token, head, 0), dim, scratch.queries);
    }
  }
  void load_key(i64 key) const {
    const IndexerTensor<2>& k = args.operands.k;
    if (k.is_e4m3) {
      Scorer::load_row<e4m3>(k.as<e4m3>().at(key, 0), dim, scratch.keys);
    } else {
      Scorer::load_row<bf16>(k.as<bf16>().at(key, 0), dim, scratch.keys);
    }
  }

  // d of the loaded query and the loaded key, and m.
  f32 d() const { return Scorer::dot(scratch.queries, scratch.keys, dim); }
  f32 factor(f32 d, i64 token, i64 head, i64 key) const {
    return d > 0.0f ? g_of(args, token, key) * *args.operands.weights.at(token, head) : 0.0f;
  }

  void query_gradient(i64 token, i64 head) const {
    const Span window = span_of(args.operands, token, 0, args.operands.keys());
    f32 sums[kSums] = {};
    f32* total = scratch.d_queries;
    f32* part = scratch.d_keys;
    for (i64 c = 0; c < dim; ++c) total[c] = 0.0f;
    load_query(token, head);
    for (i64 block = window.begin / kKeys * kKeys; block < window.end; block += kKeys) {
      for (i64 c = 0; c < dim; ++c) part[c] = 0.0f;
      const Span span = span_of(args.operands, token, block, kKeys);
      for (i64 s = span.begin; s < span.end; ++s) {
        load_key(s);
        const f32 product = d(), m = factor(product, token, head, s);
        f32& sum = sums[s % kSums];
        sum = __builtin_fmaf(g_of(args, token, s), product + __builtin_fabsf(product), sum);
        for (i64 c = 0; c < dim; ++c) part[c] = __builtin_fmaf(m, scratch.keys[c], part[c]);
      }
      for (i64 c = 0; c < dim; ++c) total[c] += part[c];
    }
    *args.d_weights.at(token, head) = 0.5f * sum_of_chains(sums);
    if (args.operands.q.is_e4m3) return;
    for (i64 c = 0; c < dim; ++c) *args.d_q.at(token, head, c) = to_bf16(total[c]);
  }

  void key_gradient(i64 key) const {
    f32* total = scratch.d_keys;
    f32* part = scratch.d_queries;
    for (i64 c = 0; c < dim; ++c) total[c] = 0.0f;
    load_key(key);
    for (i64 t = 0; t < args.operands.q.shape[0]; ++t) {
      if (span_of(args.operands, t, key, 1).is_empty()) continue;
      for (i64 c = 0; c < dim; ++c) part[c] = 0.0f;
      for (i64 h = 0; h < heads; ++h) {
        load_query(t, h);
        const f32 m = factor(d(), t, h, key);
        for (i64 c = 0; c < dim; ++c) part[c] = __builtin_fmaf(m, scratch.queries[c], part[c]);
      }
      for (i64 c = 0; c < dim; ++c) total[c] += part[c];
    }
    for (i64 c = 0; c < dim; ++c) *args.d_k.at(key, c) = to_bf16(total[c]);
  }
};

}  // namespace

void indexer_logits_bwd_queries(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const i64 tokens = args.operands.q.shape[0], heads = args.operands.q.shape[1], group = group_of(heads);
  const Scratch scratch(args.workspace, heads, args.operands.q.shape[2], thread);
  const Problem problem(args, scratch);
  for (i64 t = begin * group; t < smaller(end * group, tokens); ++t) {
    for (i64 h = 0; h < heads; ++h) problem.query_gradient(t, h);
  }
  cpu::restore_floats(before);
}

void indexer_logits_bwd_keys(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const Scratch scratch(args.workspace, args.operands.q.shape[1], args.operands.q.shape[2], thread);
  const Problem problem(args, scratch);
  for (i64 s = begin * kKeys; s < smaller(end * kKeys, args.operands.keys()); ++s) problem.key_gradient(s);
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
