// dequantize_fp8 in portable C++, value by value.
#include "ops/dequantize_fp8/areas.h"

namespace glm5::generic {
namespace {

GLM5_INLINE void store(f32* x, f32 value) { *x = value; }
GLM5_INLINE void store(bf16* x, f32 value) { *x = to_bf16(value); }

// Round to nearest even, subnormal numbers included; beyond the largest: infinity.
GLM5_INLINE void store(f16* x, f32 value) {
  const u32 bits = bits_of(value), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  u32 rounded;
  if (magnitude > 0x7f800000) {
    rounded = 0x7e00;
  } else if (magnitude >= bits_of(65520.0f)) {
    rounded = 0x7c00;
  } else if (magnitude < bits_of(0x1p-14f)) {
    // Steps are 2^-24 wide: adding 0.5 leaves their rounded count in the low bits.
    rounded = bits_of(f32_of_bits(magnitude) + 0.5f) - bits_of(0.5f);
  } else {
    rounded = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112u << 10);
  }
  *x = {static_cast<u16>(sign | rounded)};
}

struct Kernel {
  template <class T>
  static void run(const DequantizeFp8Args& args, const cpu::Fp8Area& area) {
    const auto x = args.x.as<T>();
    const bool transposed = args.group == Fp8Group::column;
    for (i64 row = area.row_begin; row < area.row_end; ++row) {
      for (i64 col = area.col_begin; col < area.col_end; ++col) {
        const e4m3 value = transposed ? *args.values.at(col, row) : *args.values.at(row, col);
        const f32 product = area.group < 0 ? 0 : to_f32(value) * dequantize::scale_at(args, area, row, col);
        // Machines differ in the NaN that an operation makes; ours is one.
        store(x.at(row, col), product == product ? product : f32_of_bits(0x7fc00000));
      }
    }
  }
};

}  // namespace

void dequantize_fp8(const DequantizeFp8Args& args, i64 begin, i64 end, i64) {
  cpu::run_fp8_areas<Kernel>(args, dequantize::kTiling, begin, end);
}

}  // namespace glm5::generic
