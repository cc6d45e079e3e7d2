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

}  // namespace glm5::ptx
