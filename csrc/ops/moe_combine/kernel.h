// moe_combine on the CPU, for vectors of any width. Machine says what a vector is: its Vector loads and stores numbers
// (cpu/vector.h), its Lanes calculate (cpu/avx2.h, cpu/avx512.h, core/exp.h). Columns beside whole vectors go through
// cpu/ragged.h.
#pragma once

#include "core/exp.h"
#include "cpu/float_environment.h"
#include "cpu/ragged.h"
#include "ops/moe_combine/items.h"

namespace glm5::moe_combine {

namespace {

constexpr i64 kSums = 8;      // vectors of sums that a token's rows are added to at a time
constexpr i64 kAhead = 128;  // columns that a row is asked for in advance

template <class Machine>
constexpr i64 kColumns = kSums * Machine::Lanes::kCount;

// `count` columns of a token from `begin` on; with kIsWhole as many as there are sums.
template <class Machine, bool kIsWhole>
GLM5_INLINE void combine_columns(const MoeCombineArgs& args, i64 token, i64 begin, i64 count) {
  using Lanes = typename Machine::Lanes;
  typename Lanes::F32 sums[kSums];
#pragma GCC unroll 8
  for (i64 v = 0; v < kSums; ++v) sums[v] = Lanes::zero();
  const auto load = [&](const bf16* from, i64 c) [[gnu::always_inline]] {
    return kIsWhole ? Machine::Vector::load_f32(from + c) : cpu::load_ragged<Machine>(from + c, count - c);
  };
  for (i64 k = 0; k < args.inputs.topk(); ++k) {
    const i64 row = args.inputs.row_of(token, k);
    if (row < 0) continue;
    const auto weight = Lanes::constant(args.inputs.weight_of(token, k));
    const bf16* from = args.inputs.rows.at(row, begin);
    for (i64 c = 0; c < kColumns<Machine>; c += 32) __builtin_prefetch(from + kAhead + c);
#pragma GCC unroll 8
    for (i64 v = 0; v < kSums; ++v) {
      const i64 c = v * Lanes::kCount;
      if (kIsWhole || c < count) sums[v] = Lanes::fma(weight, load(from, c), sums[v]);
    }
  }
  const bf16* shared = args.shared.exists() ? args.shared.at(token, begin) : nullptr;
  bf16* out = args.out.at(token, begin);
#pragma GCC unroll 8
  for (i64 v = 0; v < kSums; ++v) {
    const i64 c = v * Lanes::kCount;
    if (!kIsWhole && c >= count) break;
    if (shared != nullptr) sums[v] = sums[v] + load(shared, c);
    cpu::store_ragged<Machine>(out + c, sums[v], kIsWhole ? kColumns<Machine> : count - c);
  }
}

template <class Machine>
void run(const MoeCombineArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  constexpr i64 kWhole = kColumns<Machine>;
  for (i64 item = begin; item < end; ++item) {
    const Strip strip = strip_of(args.inputs, item);
    i64 c = strip.begin;
    for (; c + kWhole <= strip.end; c += kWhole) combine_columns<Machine, true>(args, strip.row, c, kWhole);
    if (c < strip.end) combine_columns<Machine, false>(args, strip.row, c, strip.end - c);
  }
  cpu::restore_floats(before);
}

// d_rows, one row after the other.
template <class Machine>
void run_rows(const MoeCombineBwdArgs& args, i64 begin, i64 end) {
  using Lanes = typename Machine::Lanes;
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 topk = args.inputs.topk(), hidden = args.inputs.hidden();
  const auto owners = owners_of(args);
  for (i64 row = begin; row < end; ++row) {
    bf16* to = args.d_rows.at(row, 0);
    const i64 owner = *owners.at(row);
    if (owner < 0) {
      __builtin_memset(to, 0, sizeof(bf16) * hidden);
      continue;
    }
    const auto weight = Lanes::constant(args.inputs.weight_of(owner / topk, owner % topk));
    const bf16* from = args.d_out.at(owner / topk, 0);
    for (i64 c = 0; c < hidden; c += Lanes::kCount)
      cpu::store_ragged<Machine>(to + c, weight * cpu::load_ragged<Machine>(from + c, hidden - c), hidden - c);
  }
  cpu::restore_floats(before);
}

// The 64 chains of a product and their sum.
template <class Machine>
GLM5_INLINE f32 dot(const bf16* x, const bf16* y, i64 hidden) {
  using Lanes = typename Machine::Lanes;
  constexpr i64 kVectors = kCombineChains / Lanes::kCount;
  typename Lanes::F32 chains[kVectors];
  for (i64 v = 0; v < kVectors; ++v) chains[v] = Lanes::zero();
  for (i64 begin = 0; begin < hidden; begin += kCombineChains) {
#pragma GCC unroll 8
    for (i64 v = 0; v < kVectors; ++v) {
      const i64 c = begin + v * Lanes::kCount;
      if (c >= hidden) break;
      chains[v] = Lanes::fma(cpu::load_ragged<Machine>(x + c, hidden - c), cpu::load_ragged<Machine>(y + c, hidden - c),
                             chains[v]);
    }
  }
  alignas(64) f32 sums[kCombineChains];
  for (i64 v = 0; v < kVectors; ++v) Lanes::store(sums + v * Lanes::kCount, chains[v]);
  for (i64 half = kCombineChains / 2; half > 0; half /= 2) {
    for (i64 c = 0; c < half; ++c) sums[c] = sums[c] + sums[c + half];
  }
  return sums[0];
}

template <class Machine>
void run_weights(const MoeCombineBwdArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 token = begin; token < end; ++token) {
    for (i64 k = 0; k < args.inputs.topk(); ++k) {
      const i64 row = args.inputs.row_of(token, k);
      *args.d_weights.at(token, k) =
          row < 0 ? 0.0f : dot<Machine>(args.d_out.at(token, 0), args.inputs.rows.at(row, 0), args.inputs.hidden());
    }
  }
  cpu::restore_floats(before);
}

}  // namespace
}  // namespace glm5::moe_combine
