// A score spelled out, one multiply-add at a time: the bits that the other Scorers must give.
#pragma once

#include "core/fp8.h"
#include "cpu/indexer.h"

namespace glm5::generic {

struct Scorer {
  static constexpr bool kWithAmx = false;

  template <class T>
  static void load_row(const void* from, i64 dim, f32* to) {
    const T* values = static_cast<const T*>(from);
    for (i64 i = 0; i < round_up(dim, cpu::kGemmStep); ++i) to[i] = i < dim ? to_f32(values[i]) : 0.0f;
  }

  static f32 dot(const f32* q, const f32* k, i64 dim) {
    f32 d = 0.0f;
    for (i64 step = 0; step < dim; step += cpu::kGemmStep) {
      f32 even = 0.0f, odd = 0.0f;
      for (i64 i = step; i < step + cpu::kGemmStep; i += 2) {
        even = __builtin_fmaf(q[i], k[i], even);
        odd = __builtin_fmaf(q[i + 1], k[i + 1], odd);
      }
      d += even + odd;
    }
    return d;
  }

  // q: the token's queries, a row every `stride`.
  static f32 score_key(const IndexerOperands& operands, i64 token, const f32* q, i64 stride, const f32* k, f32 scale) {
    f32 c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (i64 h = 0; h < operands.q.shape[1]; ++h) {
      const f32 d = dot(q + h * stride, k, operands.q.shape[2]);
      f32& sum = c[h / 2 % 4];
      sum = __builtin_fmaf(*operands.weights.at(token, h), d + __builtin_fabsf(d), sum);
    }
    return ((c[0] + c[1]) + (c[2] + c[3])) * scale;
  }

  template <class T>
  static void score_token(const IndexerOperands& operands, i64 token, const cpu::KeySpan& span,
                          const cpu::IndexerScratch& scratch, f32* row) {
    const i64 dim = operands.q.shape[2], stride = round_up(dim, cpu::kGemmBlock);
    f32* q = reinterpret_cast<f32*>(scratch.queries);
    f32* k = reinterpret_cast<f32*>(scratch.panel);
    for (i64 h = 0; h < operands.q.shape[1]; ++h) load_row<T>(operands.q.as<T>().at(token, h, 0), dim, q + h * stride);
    for (i64 s = span.begin; s < span.end; ++s) {
      const cpu::KeyRows key = cpu::indexer_keys(operands, token, s);
      load_row<T>(key.values, dim, k);
      row[s] = score_key(operands, token, q, stride, k, key.scales != nullptr ? 0.5f * *key.scales : 0.5f);
    }
  }

  static void score(const IndexerOperands& operands, const cpu::IndexerItem& item, const cpu::IndexerScratch& scratch,
                    const cpu::ScoreRows& rows) {
    for (i64 t = item.first_token; t < item.first_token + item.tokens; ++t) {
      const cpu::KeySpan span = cpu::indexer_span(operands, t, item.first_key, item.keys);
      f32* row = rows.of(item, t) - item.first_key;
      if (operands.q.is_e4m3) {
        score_token<e4m3>(operands, t, span, scratch, row);
      } else {
        score_token<bf16>(operands, t, span, scratch, row);
      }
    }
  }
};

}  // namespace glm5::generic
