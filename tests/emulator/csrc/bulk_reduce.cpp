#include "bulk_reduce.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "wgmma_math.h"

namespace glm5::emulator {
namespace {

struct Half {
  u16 bits;
  f32 wide() const { return f16_to_f32(bits); }
  static Half from(f32 value) { return {f32_to_f16(value)}; }
};
struct Brain {
  u16 bits;
  f32 wide() const { return std::bit_cast<f32>(u32{bits} << 16); }
  static Brain from(f32 value) {
    const u32 wide = std::bit_cast<u32>(value);
    if (value != value) return {0x7fff};
    return {static_cast<u16>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
  }
};

template <ReduceOperation kOperation, class T>
T combine(T a, T b) {
  if constexpr (kOperation == ReduceOperation::add) return static_cast<T>(a + b);
  if constexpr (kOperation == ReduceOperation::min) return std::min(a, b);
  if constexpr (kOperation == ReduceOperation::max) return std::max(a, b);
  if constexpr (std::is_integral_v<T>) {
    if constexpr (kOperation == ReduceOperation::and_) return a & b;
    if constexpr (kOperation == ReduceOperation::or_) return a | b;
    if constexpr (kOperation == ReduceOperation::xor_) return a ^ b;
  }
  return a;
}

template <ReduceOperation kOperation, class T>
void reduce(u8* to, const u8* from, u32 bytes) {
  for (u32 at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    T old, more;
    std::memcpy(&old, to + at, sizeof(T));
    std::memcpy(&more, from + at, sizeof(T));
    if constexpr (std::is_arithmetic_v<T>) {
      old = combine<kOperation>(old, more);
    } else {
      old = T::from(combine<kOperation>(old.wide(), more.wide()));
    }
    std::memcpy(to + at, &old, sizeof(T));
  }
}

template <ReduceOperation kOperation>
Reduce of_element(TensorElement element) {
  constexpr bool kIsBitwise = kOperation >= ReduceOperation::and_;
  switch (element) {
    case TensorElement::u32_:
      return reduce<kOperation, u32>;
    case TensorElement::i32_:
      return reduce<kOperation, i32>;
    case TensorElement::u64_:
      return reduce<kOperation, u64>;
    case TensorElement::i64_:
      return reduce<kOperation, i64>;
    case TensorElement::f16:
      return kIsBitwise ? nullptr : reduce<kOperation, Half>;
    case TensorElement::bf16:
      return kIsBitwise ? nullptr : reduce<kOperation, Brain>;
    case TensorElement::f32:
    case TensorElement::f32_ftz:
      return kOperation == ReduceOperation::add ? reduce<kOperation, f32> : nullptr;
    case TensorElement::f64:
      return kOperation == ReduceOperation::add ? reduce<kOperation, f64> : nullptr;
    default:
      return nullptr;
  }
}

}  // namespace

Reduce reduction_of(ReduceOperation operation, u8 element) {
  const auto type = static_cast<TensorElement>(element);
  switch (operation) {
    case ReduceOperation::add:
      return of_element<ReduceOperation::add>(type);
    case ReduceOperation::min:
      return of_element<ReduceOperation::min>(type);
    case ReduceOperation::max:
      return of_element<ReduceOperation::max>(type);
    case ReduceOperation::and_:
      return of_element<ReduceOperation::and_>(type);
    case ReduceOperation::or_:
      return of_element<ReduceOperation::or_>(type);
    case ReduceOperation::xor_:
      return of_element<ReduceOperation::xor_>(type);
  }
  return nullptr;
}

u8 tensor_element_of(Type type) {
  switch (type) {
    case Type::u32:
    case Type::b32:
      return static_cast<u8>(TensorElement::u32_);
    case Type::s32:
      return static_cast<u8>(TensorElement::i32_);
    case Type::u64:
    case Type::b64:
      return static_cast<u8>(TensorElement::u64_);
    case Type::s64:
      return static_cast<u8>(TensorElement::i64_);
    case Type::f16:
      return static_cast<u8>(TensorElement::f16);
    case Type::bf16:
      return static_cast<u8>(TensorElement::bf16);
    case Type::f32:
      return static_cast<u8>(TensorElement::f32);
    case Type::f64:
      return static_cast<u8>(TensorElement::f64);
    default:
      return 0xff;
  }
}

}  // namespace glm5::emulator
