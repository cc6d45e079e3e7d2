// Loops over the lanes of a warp, and the choice of a typed executor.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "state.h"

namespace glm5::emulator {

// d[lane] = f(lane) for the lanes of the mask. The whole warp is one vectorised loop; few lanes are taken one by one.
template <class D, class F>
[[gnu::always_inline]] inline void compute(D* __restrict d, u32 mask, F f) {
  if (mask == kAllLanes) {
    D result[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) result[lane] = f(lane);
    for (int lane = 0; lane < kLanes; ++lane) d[lane] = result[lane];
  } else {
    for (u32 rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      d[lane] = f(lane);
    }
  }
}

template <class F>
[[gnu::always_inline]] inline void each_lane(u32 mask, F f) {
  for (u32 rest = mask; rest; rest &= rest - 1) f(__builtin_ctz(rest));
}

// The lanes of the mask where f holds, as a mask.
template <class F>
[[gnu::always_inline]] inline u32 where(u32 mask, F f) {
  if (mask != kAllLanes) {
    u32 result = 0;
    each_lane(mask, [&](int lane) { result |= static_cast<u32>(f(lane) ? 1 : 0) << lane; });
    return result;
  }
  alignas(32) u8 flags[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) flags[lane] = f(lane) ? 0xff : 0;
  return static_cast<u32>(_mm256_movemask_epi8(_mm256_load_si256(reinterpret_cast<const __m256i*>(flags))));
}

inline void set_predicate(Warp& warp, Operand operand, u32 mask, u32 value) {
  u32& bits = predicate(warp, operand);
  bits = (bits & ~mask) | (value & mask);
}

// Executors of one to three sources of one type. F has operator()(T...) const.
template <class T, class F>
Step run_unary(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  compute(row<T>(warp, in.d), mask, [=](int i) { return static_cast<T>(F{}(a[i])); });
  return Step::next;
}

template <class T, class F>
Step run_binary(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  compute(row<T>(warp, in.d), mask, [=](int i) { return static_cast<T>(F{}(a[i], b[i])); });
  return Step::next;
}

template <class T, class F>
Step run_ternary(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b), *c = row<T>(warp, in.c);
  compute(row<T>(warp, in.d), mask, [=](int i) { return static_cast<T>(F{}(a[i], b[i], c[i])); });
  return Step::next;
}

// The executor of an integer type; null for other types. kRun is run_unary<T, F> and so on, by Arity.
template <int kArity, class T, class F>
constexpr Executor run_of() {
  if constexpr (kArity == 1) return run_unary<T, F>;
  if constexpr (kArity == 2) return run_binary<T, F>;
  if constexpr (kArity == 3) return run_ternary<T, F>;
}

template <int kArity, class F>
Executor pick_integer(Type type) {
  switch (type) {
    case Type::u16: case Type::b16: return run_of<kArity, u16, F>();
    case Type::s16: return run_of<kArity, i16, F>();
    case Type::u32: case Type::b32: return run_of<kArity, u32, F>();
    case Type::s32: return run_of<kArity, i32, F>();
    case Type::u64: case Type::b64: return run_of<kArity, u64, F>();
    case Type::s64: return run_of<kArity, i64, F>();
    default: return nullptr;
  }
}

constexpr bool is_signed(Type type) {
  return type == Type::s8 || type == Type::s16 || type == Type::s32 || type == Type::s64;
}
constexpr bool is_float(Type type) {
  return type >= Type::f16;
}

}  // namespace glm5::emulator
