// Sums that no order of additions can change: contributions as 64-bit integers, multiples of one unit, 2^-shift. The
// unit follows from a bound on the sum, which every kernel finds alike from maxima taken beforehand.
#pragma once

#include "core/fp8.h"

namespace glm5::cuda {

// The bits of a magnitude; 0 where it is not finite. As integers they order as the magnitudes do.
__device__ __forceinline__ u32 finite_magnitude(f32 value) {
  const u32 bits = bits_of(value) & 0x7fffffff;
  return bits < 0x7f800000 ? bits : 0;
}

// By whole warps.
__device__ __forceinline__ void keep_largest(u32* maximum, u32 bits) {
  bits = __reduce_max_sync(0xffffffff, bits);
  if (threadIdx.x % 32 == 0 && bits > 0) atomicMax(maximum, bits);
}

// The shift with which a sum of at most `bound` stays below 2^62; at most 1000, so that 2^shift is a normal number.
__device__ __forceinline__ int fixed_point_shift(f64 bound) { return bound > 0 ? min(61 - ilogb(bound), 1000) : 0; }

// 2^exponent, built from its bits: it holds one register, not two.
__device__ __forceinline__ f64 power_of_two(int exponent) { return __hiloint2double((1023 + exponent) << 20, 0); }

__device__ __forceinline__ void add_fixed_point(unsigned long long* sum, f32 value, int shift) {
  const f64 units = static_cast<f64>(value) * power_of_two(shift);
  atomicAdd(sum, static_cast<unsigned long long>(__double2ll_rn(units)));
}

}  // namespace glm5::cuda
