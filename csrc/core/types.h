// Element types under their short names. Storage only: arithmetic belongs to the kernels.
#pragma once

#include <cstdint>

namespace glm5 {

using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;
using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using f32 = float;
using f64 = double;

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};
// 1 sign, 4 exponent (bias 7), 3 mantissa bits; no infinity; 0x7f and 0xff are NaN; largest value 448.
struct e4m3 {
  u8 bits;
};

// The element types of a FloatTensor.
enum class Float : int { bf16, f16, f32 };

}  // namespace glm5
