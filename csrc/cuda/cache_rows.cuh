// What the kernels that fill a cache share. A warp works on a row.
#pragma once

#include "core/fp8.h"
#include "cuda/ptx/cvt.cuh"

namespace glm5::cuda {

__device__ __forceinline__ f32 other_lane(f32 value, int distance) {
  return __shfl_xor_sync(0xffffffff, value, distance);
}

// The scale of a group that the lanes of a warp hold, Count values each.
template <int Count>
__device__ __forceinline__ f32 group_scale(const f32 (&x)[Count], bool power_of_two) {
  u32 amax = 0;  // finite magnitudes order as their bits do
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    const u32 magnitude = bits_of(x[i]) & 0x7fffffff;
    amax = max(amax, magnitude < 0x7f800000 ? magnitude : 0);
  }
  return fp8_scale(f32_of_bits(__reduce_max_sync(0xffffffff, amax)), kCacheAmaxFloor, power_of_two);
}

// e4m3(x / scale); NaN where x is not finite.
__device__ __forceinline__ f32 quotient_of(f32 x, f32 scale) {
  return is_finite(x) ? __fdiv_rn(x, scale) : f32_of_bits(0x7fffffff);
}

}  // namespace glm5::cuda
