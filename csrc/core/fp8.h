// e4m3 and its scales, written once for every machine.
//
// scale = max(amax, amax_floor) / 448, or the power of two at or above it; q = e4m3(x / scale), both roundings to
// nearest even, the division in f32. Values that are not finite do not count in amax and become the NaN 0x7f. Groups of
// 128 along a row (or column) and blocks of 128 x 128 follow DeepSeek-V3, arXiv 2412.19437, section 3.3.2.
#pragma once

#include "core/glm5.h"

namespace glm5 {

constexpr u8 kE4m3Nan = 0x7f;

// Which values share a scale: 128 of a row (1x128), a block (128x128), 128 of a column (128x1).
enum class Fp8Group : int { row = 0, block = 1, column = 2 };

GLM5_INLINE constexpr u32 bits_of(f32 value) { return __builtin_bit_cast(u32, value); }
GLM5_INLINE constexpr f32 f32_of_bits(u32 bits) { return __builtin_bit_cast(f32, bits); }

GLM5_INLINE f32 to_f32(f32 value) { return value; }
GLM5_INLINE f32 to_f32(bf16 value) { return f32_of_bits(u32{value.bits} << 16); }

// Round to nearest even; NaN stays NaN.
GLM5_INLINE bf16 to_bf16(f32 value) {
  const u32 bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<u16>((bits >> 16) | 0x40)};
  return {static_cast<u16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

GLM5_INLINE constexpr bool is_finite(f32 value) { return (bits_of(value) & 0x7fffffff) < 0x7f800000; }

// The scale of a group whose largest finite magnitude is amax.
GLM5_INLINE constexpr f32 fp8_scale(f32 amax, f32 amax_floor, bool power_of_two) {
  const f32 scale = (amax < amax_floor ? amax_floor : amax) / kE4m3Max;
  // The exponent goes up by one unless the mantissa is zero.
  return power_of_two ? f32_of_bits((bits_of(scale) + 0x7fffff) & 0xff800000) : scale;
}

// Round to nearest even, to +-448 beyond it; not finite: 0x7f.
GLM5_INLINE constexpr e4m3 to_e4m3(f32 value) {
  const u32 bits = bits_of(value), magnitude = bits & 0x7fffffff;
  const u8 sign = static_cast<u8>((bits >> 24) & 0x80);
  if (magnitude >= 0x7f800000) return {kE4m3Nan};
  if (magnitude >= bits_of(kE4m3Max)) return {static_cast<u8>(sign | 0x7e)};
  if (magnitude < bits_of(0.015625f)) {
    // Below 2^-6 steps are 2^-9 wide: adding 2^14 leaves the rounded count of steps in the low bits.
    const u32 steps = bits_of(f32_of_bits(magnitude) + 16384.0f) - bits_of(16384.0f);
    return {static_cast<u8>(sign | steps)};
  }
  const u32 rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
  return {static_cast<u8>(sign | ((rounded >> 20) - (120u << 3)))};
}

GLM5_INLINE f32 to_f32(e4m3 value) {
  const u32 magnitude = value.bits & 0x7f, sign = u32{value.bits & 0x80u} << 24;
  if (magnitude == kE4m3Nan) return f32_of_bits(0x7fc00000);
  if (magnitude >= 8) return f32_of_bits(sign | ((magnitude + (120u << 3)) << 20));
  return f32_of_bits(sign | bits_of(static_cast<f32>(magnitude) * 0.001953125f));  // magnitude * 2^-9
}

}  // namespace glm5
