// ex2: powers of two.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-ex2
#pragma once

#include "core/types.h"

namespace glm5::ptx {

// 2^x with a relative error of about 2^-22; subnormal numbers count as zero; 2^-inf = 0.
__device__ __forceinline__ f32 ex2_approx_ftz(f32 x) {
  f32 power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

}  // namespace glm5::ptx
