// quantize_fp8 in portable C++: group by group, each a rectangle of x with one scale, by the formulas of core/fp8.h.
#include "ops/quantize_fp8/areas.h"

namespace glm5::generic {
namespace {

// Exact, subnormal numbers included: a float with the mantissa in place, times a power of two.
GLM5_INLINE f32 to_f32(f16 value) {
  const u32 magnitude = value.bits & 0x7fff, sign = u32{value.bits & 0x8000u} << 16;
  if (magnitude >= 0x7c00) return f32_of_bits(sign | 0x7f800000 | (magnitude << 13));
  const f32 positive =
      magnitude >= 0x400 ? f32_of_bits((magnitude << 13) + (112u << 23)) : static_cast<f32>(magnitude) * 0x1p-24f;
  return f32_of_bits(sign | bits_of(positive));
}
using glm5::to_f32;

struct Rectangle {
  i64 row_begin, row_end, col_begin, col_end;
};

template <class T>
f32 scale_of(const QuantizeFp8Args& args, const Tensor<const T, 2>& x, const Rectangle& group) {
  u32 amax = 0;  // finite magnitudes order as their bits do
  for (i64 row = group.row_begin; row < group.row_end; ++row) {
    for (i64 col = group.col_begin; col < group.col_end; ++col) {
      const u32 magnitude = bits_of(to_f32(*x.at(row, col))) & 0x7fffffff;
      if (magnitude < 0x7f800000 && magnitude > amax) amax = magnitude;
    }
  }
  return fp8_scale(f32_of_bits(amax), args.amax_floor, args.power_of_two);
}

// Non-finite x gives a non-finite quotient, and that the NaN.
template <class T>
void store_values(const QuantizeFp8Args& args, const Tensor<const T, 2>& x, const Rectangle& group, f32 scale) {
  const bool transposed = args.group == Fp8Group::column;
  for (i64 row = group.row_begin; row < group.row_end; ++row) {
    for (i64 col = group.col_begin; col < group.col_end; ++col) {
      e4m3* value = transposed ? args.values.at(col, row) : args.values.at(row, col);
      *value = to_e4m3(to_f32(*x.at(row, col)) / scale);
    }
  }
}

struct Kernel {
  template <class T>
  static void run(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
    if (quantize::is_done(args, area)) return;
    const auto x = args.x.as<const T>();
    const bool by_row = args.group == Fp8Group::row, by_column = args.group == Fp8Group::column;
    const i64 height = by_row ? 1 : kFp8Group, width = by_column ? 1 : kFp8Group;
    for (i64 row = area.row_begin; row < area.row_end; row += height) {
      for (i64 col = area.col_begin; col < area.col_end; col += width) {
        const Rectangle group{row, smaller(row + height, area.row_end), col, smaller(col + width, area.col_end)};
        const f32 scale = scale_of(args, x, group);
        *(by_column ? args.scales.at(col, area.group) : args.scales.at(row / height, col / width)) = scale;
        store_values(args, x, group, scale);
      }
    }
  }
};

}  // namespace

void quantize_fp8(const QuantizeFp8Args& args, i64 begin, i64 end, i64) {
  cpu::run_fp8_areas<Kernel>(args, quantize::kTiling, begin, end);
}

}  // namespace glm5::generic
