// The number formats, bit by bit: rounding of exact values to them, and back.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <limits>

#include "core/types.h"

namespace glm5::emulator {

enum class Rounding : unsigned char { nearest, zero, down, up, away };  // away: to nearest, ties away from zero

inline u32 bits_of(float value) { return std::bit_cast<u32>(value); }
inline float float_of(u32 bits) { return std::bit_cast<float>(bits); }

inline float from_bf16(u16 bits) { return float_of(u32{bits} << 16); }
inline float from_f16(u16 bits) { return _cvtsh_ss(bits); }

inline u16 to_bf16(float value) {
  const u32 bits = bits_of(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline u16 to_f16(float value) { return value != value ? u16{0x7fff} : static_cast<u16>(_cvtss_sh(value, 0)); }

// value / 2^exponent rounded to an integer.
inline double round_integer(double value, Rounding rounding) {
  switch (rounding) {
    case Rounding::nearest: return std::nearbyint(value);
    case Rounding::zero: return std::trunc(value);
    case Rounding::down: return std::floor(value);
    case Rounding::up: return std::ceil(value);
    case Rounding::away: return std::round(value);
  }
  return value;
}

// Rounds an exact value to `mantissa` bits after the leading one, with exponents of at least `smallest`. Does not
// overflow.
inline double round_to(double value, int mantissa, int smallest, Rounding rounding) {
  if (value == 0 || !std::isfinite(value)) return value;
  int exponent = std::ilogb(value);
  if (exponent < smallest) exponent = smallest;
  const double rounded = round_integer(std::ldexp(value, mantissa - exponent), rounding);
  return std::copysign(std::ldexp(rounded, exponent - mantissa), value);
}

struct Format {
  int mantissa, smallest;  // bits after the leading one; exponent of the smallest normal number
  double largest;
};
constexpr Format kF32{23, -126, 0x1.fffffep127}, kF16{10, -14, 65504.0}, kBf16{7, -126, 0x1.fep127};
constexpr Format kE4m3{3, -6, 448.0}, kE5m2{2, -14, 57344.0}, kTf32{10, -126, 0x1.ffcp127};

// What an exact value becomes in a format, still as a double; beyond the largest: infinity, or the largest where the
// rounding goes towards it or `saturate`.
inline double round_to(double value, const Format& format, Rounding rounding, bool saturate) {
  if (value != value) return value;
  if (std::isinf(value)) return saturate ? std::copysign(format.largest, value) : value;
  const double rounded = round_to(value, format.mantissa, format.smallest, rounding);
  if (std::fabs(rounded) <= format.largest) return rounded;
  const bool towards_zero = rounding == Rounding::zero || (rounding == Rounding::down && value > 0) ||
                            (rounding == Rounding::up && value < 0);
  return std::copysign(saturate || towards_zero ? format.largest : std::numeric_limits<double>::infinity(), value);
}

// The bits of a double that the format holds exactly (IEEE layouts; e4m3 is handled apart).
inline u32 encode(double value, const Format& format, int exponent_bits) {
  const u32 sign = std::signbit(value) ? 1 : 0;
  const int bias = (1 << (exponent_bits - 1)) - 1, width = 1 + exponent_bits + format.mantissa;
  const u32 top = sign << (width - 1), special = ((u32{1} << exponent_bits) - 1) << format.mantissa;
  if (value != value) return (u32{1} << (width - 1)) - 1;  // the canonical NaN of PTX: all ones but the sign
  if (std::isinf(value)) return top | special;
  if (value == 0) return top;
  const double magnitude = std::fabs(value);
  const int exponent = std::ilogb(magnitude);
  if (exponent < format.smallest)
    return top | static_cast<u32>(std::ldexp(magnitude, format.mantissa - format.smallest));
  const u32 mantissa =
      static_cast<u32>(std::ldexp(magnitude, format.mantissa - exponent)) - (u32{1} << format.mantissa);
  return top | static_cast<u32>(exponent + bias) << format.mantissa | mantissa;
}

inline double decode_minifloat(u32 bits, int exponent_bits, int mantissa_bits, bool is_e4m3) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const u32 mantissa = bits & ((u32{1} << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((u32{1} << exponent_bits) - 1));
  const double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0;
  const bool top = exponent == (1 << exponent_bits) - 1;
  if (is_e4m3 ? (top && mantissa == 7) : (top && mantissa != 0)) return std::numeric_limits<double>::quiet_NaN();
  if (!is_e4m3 && top) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(double(mantissa), 1 - bias - mantissa_bits);
  return sign * std::ldexp(double(mantissa) + double(u32{1} << mantissa_bits), exponent - bias - mantissa_bits);
}

inline float from_e4m3(u8 bits) { return static_cast<float>(decode_minifloat(bits, 4, 3, true)); }
inline float from_e5m2(u8 bits) { return static_cast<float>(decode_minifloat(bits, 5, 2, false)); }

// satfinite: beyond the largest goes to the largest; NaN stays NaN.
inline u8 to_e4m3(double value) {
  if (value != value) return 0x7f;
  return static_cast<u8>(encode(round_to(value, kE4m3, Rounding::nearest, true), kE4m3, 4));
}
inline u8 to_e5m2(double value) {
  if (value != value) return 0x7f;
  return static_cast<u8>(encode(round_to(value, kE5m2, Rounding::nearest, true), kE5m2, 5));
}

// To f32 so that a later rounding to fewer bits is as if from the exact value: inexact results get an odd last bit.
inline float to_f32_odd(double value) {
  const float nearest = static_cast<float>(value);
  if (double(nearest) == value || value != value || std::isinf(nearest)) return nearest;
  if (bits_of(nearest) & 1) return nearest;
  const bool below = std::fabs(double(nearest)) < std::fabs(value);
  return float_of(bits_of(nearest) + (below ? 1 : -1));
}

// a * b + c with one rounding, for f16 and bf16 factors, as an f32 that is rounded to odd.
inline float fma_odd(float a, float b, float c) {
  const double product = double(a) * double(b);  // exact: at most 22 bits
  const double sum = product + double(c);
  if (!std::isfinite(sum)) return static_cast<float>(sum);
  const double back = sum - product, error = (product - (sum - back)) + (double(c) - back);
  double odd = sum;
  if (error != 0 && !(std::bit_cast<u64>(sum) & 1)) {
    const bool grows = (error > 0) == (sum > 0);
    odd = std::bit_cast<double>(std::bit_cast<u64>(sum) + (grows ? 1 : -1));
  }
  return to_f32_odd(odd);
}

}  // namespace glm5::emulator
