// exp (core/exp.h) and log in f32 with the same bits on every machine, the error of log below 1 ulp too
// (tests/cpu/test_exp.py). log is of normal positive numbers; NaN and +inf stay as they are.
//
// The polynomial is a least squares fit, reweighted towards the smallest largest error, of (log(1 + f) - f) / f^2 on
// sqrt(1/2) <= 1 + f <= sqrt(2).
#pragma once

#include "core/exp.h"

namespace glm5::cpu {

using glm5::exp_of;
using glm5::ScalarLanes;

GLM5_INLINE f32 log_of(f32 x) {
  if (!(x < __builtin_inff())) return x;
  constexpr u32 kSqrtHalf = 0x3f3504f3;
  const u32 above = bits_of(x) - kSqrtHalf;
  const f32 n = static_cast<f32>(static_cast<i32>(above) >> 23);
  const f32 f = f32_of_bits((above & 0x7fffff) + kSqrtHalf) - 1.0f;
  f32 sum = -0.07622108608484268f;
  sum = __builtin_fmaf(sum, f, 0.12904690206050873f);
  sum = __builtin_fmaf(sum, f, -0.13242976367473602f);
  sum = __builtin_fmaf(sum, f, 0.14181779325008392f);
  sum = __builtin_fmaf(sum, f, -0.16609077155590057f);
  sum = __builtin_fmaf(sum, f, 0.20001976191997528f);
  sum = __builtin_fmaf(sum, f, -0.25001582503318787f);
  sum = __builtin_fmaf(sum, f, 0.33333325386047363f);
  sum = __builtin_fmaf(sum, f, -0.49999988079071045f);
  const f32 low = __builtin_fmaf(sum, f * f, n * -2.12194442e-4f);
  return __builtin_fmaf(n, 0.693359375f, f + low);
}

}  // namespace glm5::cpu
