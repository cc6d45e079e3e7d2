// A group of 128 values to e4m3 where they have just been computed: the bits of quantize_fp8 1x128, as a loop over a
// fixed count that the compiler turns into vectors of whatever instruction set it compiles for.
#pragma once

#include "core/fp8.h"

namespace glm5::cpu {

// The e4m3 of a quotient of at most 448, without a branch: |q| + 2^(e + 20) has its last bit at the step of e4m3 there,
// so its low bits count steps. (kernel.h of quantize_fp8 has the whole argument.)
GLM5_INLINE u8 e4m3_of(f32 quotient) {
  const u32 magnitude = bits_of(quotient) & 0x7fffffff, sign = (bits_of(quotient) >> 24) & 0x80;
  const u32 power = magnitude & 0x7f800000;
  const u32 adder = (power < (121u << 23) ? 121u << 23 : power) + (20u << 23) + 65536 - 1128;
  const u32 code = (bits_of(f32_of_bits(magnitude) + f32_of_bits(adder)) + (adder >> 20)) & 0xff;
  const u32 finite = 0u - u32{magnitude < 0x7f800000};  // all ones: gcc 12 would move what a choice needs behind it
  return static_cast<u8>(((code | sign) & finite) | (kE4m3Nan & ~finite));
}

// kFp8Group values to e4m3, as quantize_fp8 1x128; returns their scale.
GLM5_INLINE f32 quantize_group(const f32* x, f32 amax_floor, bool power_of_two, u8* to) {
  i32 amax = 0;  // finite magnitudes order as their bits do
  for (i64 i = 0; i < kFp8Group; ++i) {
    const i32 magnitude = static_cast<i32>(bits_of(x[i]) & 0x7fffffff);
    const i32 finite = magnitude & -i32{magnitude < 0x7f800000};
    amax = finite > amax ? finite : amax;
  }
  const f32 scale = fp8_scale(f32_of_bits(static_cast<u32>(amax)), amax_floor, power_of_two);
  alignas(64) u8 values[kFp8Group];
  for (i64 i = 0; i < kFp8Group; ++i) values[i] = e4m3_of(x[i] / scale);
  __builtin_memcpy(to, values, kFp8Group);
  return scale;
}

}  // namespace glm5::cpu
