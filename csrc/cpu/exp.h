// exp and log in f32 with the same bits on every machine: a fixed sequence of additions, multiplications and fused
// multiply-adds, no library, no table. Errors (tests/cpu/test_exp.py): exp below 1 ulp, log below 1 ulp.
//
//   exp: below -88 and for -inf it is 0, which includes results below 2^-126; +inf from 127.5 log 2 = 88.38 on
//   log: of normal positive numbers; NaN and +inf stay as they are
//
// The polynomials are least squares fits, reweighted towards the smallest largest error, of (e^r - 1 - r) / r^2 on
// |r| <= log(2) / 2 and of (log(1 + f) - f) / f^2 on sqrt(1/2) <= 1 + f <= sqrt(2).
#pragma once

#include "core/fp8.h"

namespace glm5::cpu {

// One number, as a vector of one lane (Lanes: cpu/gemm_vectors.h).
struct ScalarLanes {
  static constexpr i64 kCount = 1;
  using F32 = f32;

  GLM5_INLINE static F32 zero() { return 0.0f; }
  GLM5_INLINE static F32 broadcast(const f32& x) { return x; }
  GLM5_INLINE static F32 load(const f32* x) { return *x; }
  GLM5_INLINE static void store(f32* to, F32 x) { *to = x; }
  GLM5_INLINE static F32 fma(F32 x, F32 y, F32 sum) { return __builtin_fmaf(x, y, sum); }
  GLM5_INLINE static F32 larger_of(F32 x, F32 y) { return x > y ? x : y; }
  GLM5_INLINE static F32 smaller_of(F32 x, F32 y) { return x < y ? x : y; }
  GLM5_INLINE static F32 low_bits_to_exponent(F32 x) { return f32_of_bits(bits_of(x) << 23); }
  GLM5_INLINE static F32 round_to_bf16(F32 x) { return to_f32(to_bf16(x)); }
};

template <class Lanes>
GLM5_INLINE typename Lanes::F32 exp_of(typename Lanes::F32 x) {
  using F32 = typename Lanes::F32;
  // 1.5 * 2^23 + 127: adding it rounds to an integer n, whose lowest bits become n + 127, the exponent field of 2^n.
  const F32 magic = Lanes::broadcast(12583039.0f);
  const F32 bounded = Lanes::smaller_of(Lanes::broadcast(89.0f), Lanes::larger_of(Lanes::broadcast(-88.0f), x));
  const F32 shifted = Lanes::fma(bounded, Lanes::broadcast(1.44269502f), magic);
  const F32 n = shifted - magic;
  F32 r = Lanes::fma(n, Lanes::broadcast(-0.693359375f), bounded);  // log 2 in two parts; the first has ten bits
  r = Lanes::fma(n, Lanes::broadcast(2.12194442e-4f), r);
  F32 sum = Lanes::broadcast(0.0013814539415761828f);
  sum = Lanes::fma(sum, r, Lanes::broadcast(0.00836874544620514f));
  sum = Lanes::fma(sum, r, Lanes::broadcast(0.04166838899254799f));
  sum = Lanes::fma(sum, r, Lanes::broadcast(0.1666652113199234f));
  sum = Lanes::fma(sum, r, Lanes::broadcast(0.4999999403953552f));
  sum = Lanes::fma(sum, r, Lanes::broadcast(1.0f));
  sum = Lanes::fma(sum, r, Lanes::broadcast(1.0f));
  return sum * Lanes::low_bits_to_exponent(shifted);  // the exponent field is 0 from n = -127 on, and 255 at n = 128
}

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
