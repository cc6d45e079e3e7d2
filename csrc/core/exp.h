// exp in f32 with the same bits on every machine: a fixed sequence of additions, multiplications and fused
// multiply-adds, no library, no table. Its error is below 1 ulp (tests/cpu/test_exp.py). Below -88 and for -inf it is 0,
// which includes results below 2^-126; from 127.5 log 2 = 88.38 on it is +inf.
//
// The polynomial is a least squares fit, reweighted towards the smallest largest error, of (e^r - 1 - r) / r^2 on
// |r| <= log(2) / 2. A CUDA kernel must not let the last product be fused with what it adds to the result: __fadd_rn.
#pragma once

#include "core/fp8.h"

namespace glm5 {

// One number, as a vector of one lane (Lanes: cpu/avx2.h, cpu/avx512.h).
struct ScalarLanes {
  static constexpr i64 kCount = 1;
  using F32 = f32;

  GLM5_INLINE static F32 zero() { return 0.0f; }
  GLM5_INLINE static F32 broadcast(const f32& x) { return x; }
  GLM5_INLINE static F32 constant(f32 x) { return x; }  // known when compiled
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
  const F32 magic = Lanes::constant(12583039.0f);
  const F32 bounded = Lanes::smaller_of(Lanes::constant(89.0f), Lanes::larger_of(Lanes::constant(-88.0f), x));
  const F32 shifted = Lanes::fma(bounded, Lanes::constant(1.44269502f), magic);
  const F32 n = shifted - magic;
  F32 r = Lanes::fma(n, Lanes::constant(-0.693359375f), bounded);  // log 2 in two parts; the first has ten bits
  r = Lanes::fma(n, Lanes::constant(2.12194442e-4f), r);
  F32 sum = Lanes::constant(0.0013814539415761828f);
  sum = Lanes::fma(sum, r, Lanes::constant(0.00836874544620514f));
  sum = Lanes::fma(sum, r, Lanes::constant(0.04166838899254799f));
  sum = Lanes::fma(sum, r, Lanes::constant(0.1666652113199234f));
  sum = Lanes::fma(sum, r, Lanes::constant(0.4999999403953552f));
  sum = Lanes::fma(sum, r, Lanes::constant(1.0f));
  sum = Lanes::fma(sum, r, Lanes::constant(1.0f));
  return sum * Lanes::low_bits_to_exponent(shifted);  // the exponent field is 0 from n = -127 on, and 255 at n = 128
}

}  // namespace glm5
