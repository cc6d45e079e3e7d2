// The summation tree spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "core/fp8.h"
#include "cpu/float_environment.h"
#include "cpu/indexer.h"
#include "ops/indexer_logits/indexer_logits.h"

namespace glm5::generic {
namespace {

// Row after row of dim values as f32, padded with zeros.
template <class T>
void load_row(const T* from, i64 dim, f32* to) {
  for (i64 i = 0; i < cpu::indexer_padded_dim(dim); ++i) to[i] = i < dim ? to_f32(from[i]) : 0.0f;
}
void load_row(bool is_e4m3, const void* from, i64 dim, f32* to) {
  if (is_e4m3) {
    load_row(static_cast<const e4m3*>(from), dim, to);
  } else {
    load_row(static_cast<const bf16*>(from), dim, to);
  }
}

f32 dot(const f32* q, const f32* k, i64 padded_dim) {
  f32 d = 0.0f;
  for (i64 step = 0; step < padded_dim; step += cpu::kIndexerStep) {
    f32 even = 0.0f, odd = 0.0f;
    for (i64 i = step; i < step + cpu::kIndexerStep; i += 2) {
      even = __builtin_fmaf(q[i], k[i], even);
      odd = __builtin_fmaf(q[i + 1], k[i + 1], odd);
    }
    d += even + odd;
  }
  return d;
}

f32 score(const IndexerOperands& operands, i64 token, const f32* q, const f32* k, f32 scale) {
  const i64 padded_dim = cpu::indexer_padded_dim(operands.q.shape[2]);
  f32 c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (i64 h = 0; h < operands.q.shape[1]; ++h) {
    const f32 d = dot(q + h * padded_dim, k, padded_dim);
    f32& sum = c[h / 2 % 4];
    sum = __builtin_fmaf(*operands.weights.at(token, h), d + __builtin_fabsf(d), sum);
  }
  return ((c[0] + c[1]) + (c[2] + c[3])) * scale;
}

// The scores of one token for the keys of its window, within a chunk.
void score_span(const IndexerOperands& operands, i64 token, const cpu::KeySpan& span, const cpu::IndexerScratch& scratch,
                f32* row) {
  const i64 heads = operands.q.shape[1], dim = operands.q.shape[2], padded_dim = cpu::indexer_padded_dim(dim);
  const i64 bytes = operands.q.is_e4m3 ? 1 : 2;
  f32* q = reinterpret_cast<f32*>(scratch.queries);
  f32* k = reinterpret_cast<f32*>(scratch.panel);
  for (i64 h = 0; h < heads; ++h) {
    const i64 offset = token * operands.q.stride[0] + h * operands.q.stride[1];
    load_row(operands.q.is_e4m3, static_cast<const u8*>(operands.q.data) + offset * bytes, dim, q + h * padded_dim);
  }
  for (i64 s = span.begin; s < span.end; ++s) {
    const cpu::KeyRows key = cpu::indexer_keys(operands, token, s);
    load_row(operands.q.is_e4m3, key.values, dim, k);
    row[s] = score(operands, token, q, k, operands.q.is_e4m3 ? 0.5f * *key.scales : 0.5f);
  }
}

}  // namespace

void indexer_logits(const IndexerLogitsArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const IndexerOperands& operands = args.operands;
  const i64 tokens = operands.q.shape[0], heads = operands.q.shape[1], dim = operands.q.shape[2];
  const cpu::IndexerScratch scratch(args.workspace, heads, dim, thread);
  for (i64 i = begin; i < end; ++i) {
    const cpu::IndexerItem item(i, tokens, operands.keys(), cpu::indexer_group(heads, dim));
    for (i64 t = item.first_token; t < item.first_token + item.tokens; ++t) {
      const cpu::KeySpan span = cpu::indexer_span(operands, t, item.first_key, item.keys);
      f32* row = args.out.at(t, 0);
      for (i64 s = item.first_key; s < item.first_key + item.keys; ++s) row[s] = -__builtin_inff();
      if (!span.is_empty()) score_span(operands, t, span, scratch, row);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
