// Rows that end beside whole vectors, for kernels that are written once for every width. Machine says what a vector is:
// its Vector loads and stores numbers of any type (cpu/vector.h), its Lanes say how many.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5::cpu {

namespace {

// The first `count` numbers of a vector that is not whole, zeros behind them.
template <class Machine, class T>
[[gnu::noinline]] typename Machine::Lanes::F32 load_few(const T* from, i64 count) {
  alignas(64) T numbers[Machine::Lanes::kCount] = {};
  for (i64 i = 0; i < count; ++i) numbers[i] = from[i];
  return Machine::Vector::load_f32(numbers);
}
template <class Machine, class T>
[[gnu::noinline]] void store_few(T* to, typename Machine::Lanes::F32 x, i64 count) {
  alignas(64) T numbers[Machine::Lanes::kCount];
  Machine::Vector::store_f32(numbers, x);
  for (i64 i = 0; i < count; ++i) to[i] = numbers[i];
}

}  // namespace

// `count` numbers, or a vector full of them where there are more.
template <class Machine, class T>
GLM5_INLINE typename Machine::Lanes::F32 load_ragged(const T* from, i64 count) {
  return count >= Machine::Lanes::kCount ? Machine::Vector::load_f32(from) : load_few<Machine>(from, count);
}
template <class Machine, class T>
GLM5_INLINE void store_ragged(T* to, typename Machine::Lanes::F32 x, i64 count) {
  if (count >= Machine::Lanes::kCount) return Machine::Vector::store_f32(to, x);
  store_few<Machine>(to, x, count);
}

// Numbers one by one, for the portable kernels.
struct OneNumber {
  template <class T>
  GLM5_INLINE static f32 load_f32(const T* from) {
    return to_f32(*from);
  }
  GLM5_INLINE static void store_f32(f32* to, f32 x) { *to = x; }
  GLM5_INLINE static void store_f32(bf16* to, f32 x) { *to = to_bf16(x); }
};

}  // namespace glm5::cpu
