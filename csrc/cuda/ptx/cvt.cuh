// cvt: conversions between floating-point types.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
#pragma once

#include "core/types.h"

namespace glm5::ptx {

// Two bf16, `low` in the low half, rounded to nearest even.
__device__ __forceinline__ u32 cvt_rn_bf16x2_f32(f32 high, f32 low) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two e4m3, `low` in the low byte, rounded to nearest even, to +-448 beyond it; NaN becomes 0x7f.
__device__ __forceinline__ u16 cvt_rn_satfinite_e4m3x2_f32(f32 high, f32 low) {
  u16 pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
  return pair;
}

// Two e4m3 as f16, exact; NaN stays NaN.
__device__ __forceinline__ u32 cvt_rn_f16x2_e4m3x2(u16 pair) {
  u32 halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(pair));
  return halves;
}

}  // namespace glm5::ptx
