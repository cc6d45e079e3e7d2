// swiglu on the CPU, for vectors of any width. Machine says what a vector is: its Vector loads and stores numbers of
// either type (cpu/vector.h), its Lanes calculate (cpu/avx2.h, cpu/avx512.h, core/exp.h).
// What is left beside whole vectors goes through cpu/ragged.h.
#pragma once

#include "core/exp.h"
#include "cpu/float_environment.h"
#include "cpu/fp8_group.h"
#include "cpu/ragged.h"
#include "ops/swiglu/items.h"

namespace glm5::swiglu {

namespace {

template <class Lanes>
struct Pair {
  typename Lanes::F32 gate, up;

  GLM5_INLINE Pair held(f32 limit) const {
    const auto most = Lanes::constant(limit), least = Lanes::constant(-limit);
    return {Lanes::smaller_of(most, gate), Lanes::larger_of(least, Lanes::smaller_of(most, up))};
  }
};

template <class Lanes>
GLM5_INLINE typename Lanes::F32 one_and_exp_of_minus(typename Lanes::F32 x) {
  return Lanes::constant(1.0f) + exp_of<Lanes>(Lanes::zero() - x);
}

template <class Lanes>
GLM5_INLINE typename Lanes::F32 product_of(const Pair<Lanes>& given, f32 limit) {
  const Pair<Lanes> pair = given.held(limit);
  return pair.gate / one_and_exp_of_minus<Lanes>(pair.gate) * pair.up;
}

template <class Lanes>
GLM5_INLINE Pair<Lanes> gradient_of(const Pair<Lanes>& given, typename Lanes::F32 d, f32 limit) {
  using F32 = typename Lanes::F32;
  const Pair<Lanes> pair = given.held(limit);
  const F32 one = Lanes::constant(1.0f), most = Lanes::constant(limit), least = Lanes::constant(-limit);
  const F32 s = one / one_and_exp_of_minus<Lanes>(pair.gate);
  const F32 d_gate = d * pair.up * (s * Lanes::fma(pair.gate, one - s, one)), d_up = d * (pair.gate * s);
  const F32 d_up_below = given.up > most ? Lanes::zero() : d_up;
  return {given.gate > most ? Lanes::zero() : d_gate, least > given.up ? Lanes::zero() : d_up_below};
}

template <class Machine, class T>
GLM5_INLINE Pair<typename Machine::Lanes> pair_at(const T* gate, const T* up, i64 count) {
  return {cpu::load_ragged<Machine>(gate, count), cpu::load_ragged<Machine>(up, count)};
}

template <class Machine, class T>
void multiply(const T* gate, const T* up, i64 count, f32 limit, bf16* out) {
  using Lanes = typename Machine::Lanes;
  for (i64 c = 0; c < count; c += Lanes::kCount) {
    const auto product = product_of<Lanes>(pair_at<Machine>(gate + c, up + c, count - c), limit);
    cpu::store_ragged<Machine>(out + c, product, count - c);
  }
}

// Groups of a row; the last one may be ragged.
template <class Machine, class T>
void multiply_and_quantize(const SwigluArgs& args, const T* gate, const T* up, const Strip& strip) {
  using Lanes = typename Machine::Lanes;
  for (i64 begin = strip.begin; begin < strip.end; begin += kFp8Group, gate += kFp8Group, up += kFp8Group) {
    const i64 count = smaller(kFp8Group, strip.end - begin);
    alignas(64) f32 product[kFp8Group];
    alignas(64) u8 values[kFp8Group];
    for (i64 c = 0; c < kFp8Group; c += Lanes::kCount) {
      const auto pair = pair_at<Machine>(gate + c, up + c, larger(count - c, 0));
      Lanes::store(product + c, Lanes::round_to_bf16(product_of<Lanes>(pair, args.inputs.limit)));
    }
    *args.scales.at(strip.row, begin / kFp8Group) =
        cpu::quantize_group(product, args.amax_floor, args.power_of_two, values);
    e4m3* to = args.values.at(strip.row, begin);
    for (i64 c = 0; c < count; ++c) to[c].bits = values[c];
  }
}

// No expert's: zeros, as if gate_up held them.
GLM5_INLINE void clear(const SwigluArgs& args, const Strip& strip) {
  const i64 count = strip.end - strip.begin;
  if (args.out.exists()) {
    __builtin_memset(args.out.at(strip.row, strip.begin), 0, 2 * count);
    return;
  }
  __builtin_memset(args.values.at(strip.row, strip.begin), 0, count);
  for (i64 begin = strip.begin; begin < strip.end; begin += kFp8Group)
    *args.scales.at(strip.row, begin / kFp8Group) = fp8_scale(0, args.amax_floor, args.power_of_two);
}

template <class Machine, class T>
void run_strip(const SwigluArgs& args, const Strip& strip) {
  const auto gate_up = args.inputs.gate_up.as<const T>();
  const T* gate = gate_up.at(strip.row, strip.begin);
  const T* up = gate + args.inputs.intermediate();
  if (args.out.exists())
    multiply<Machine>(gate, up, strip.end - strip.begin, args.inputs.limit, args.out.at(strip.row, strip.begin));
  else
    multiply_and_quantize<Machine>(args, gate, up, strip);
}

template <class Machine, class T>
void run_strip_backward(const SwigluBwdArgs& args, const Strip& strip, bool is_live) {
  using Lanes = typename Machine::Lanes;
  const i64 intermediate = args.inputs.intermediate(), count = strip.end - strip.begin;
  const T* gate = args.inputs.gate_up.as<const T>().at(strip.row, strip.begin);
  T* d_gate = args.d_gate_up.as<T>().at(strip.row, strip.begin);
  const bf16* d_out = args.d_out.at(strip.row, strip.begin);
  if (!is_live) {
    __builtin_memset(d_gate, 0, sizeof(T) * count);
    __builtin_memset(d_gate + intermediate, 0, sizeof(T) * count);
    return;
  }
  for (i64 c = 0; c < count; c += Lanes::kCount) {
    const auto pair = pair_at<Machine>(gate + c, gate + intermediate + c, count - c);
    const auto gradient = gradient_of<Lanes>(pair, cpu::load_ragged<Machine>(d_out + c, count - c), args.inputs.limit);
    cpu::store_ragged<Machine>(d_gate + c, gradient.gate, count - c);
    cpu::store_ragged<Machine>(d_gate + intermediate + c, gradient.up, count - c);
  }
}

template <class Machine>
void run(const SwigluArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 live_rows = args.inputs.live_rows();
  for (i64 item = begin; item < end; ++item) {
    const Strip strip = strip_of(args.inputs, item);
    if (strip.row >= live_rows)
      clear(args, strip);
    else if (args.inputs.gate_up.dtype == Float::bf16)
      run_strip<Machine, bf16>(args, strip);
    else
      run_strip<Machine, f32>(args, strip);
  }
  cpu::restore_floats(before);
}

template <class Machine>
void run_backward(const SwigluBwdArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 live_rows = args.inputs.live_rows();
  for (i64 item = begin; item < end; ++item) {
    const Strip strip = strip_of(args.inputs, item);
    if (args.inputs.gate_up.dtype == Float::bf16)
      run_strip_backward<Machine, bf16>(args, strip, strip.row < live_rows);
    else
      run_strip_backward<Machine, f32>(args, strip, strip.row < live_rows);
  }
  cpu::restore_floats(before);
}

}  // namespace
}  // namespace glm5::swiglu
