// A product spelled out, for the generic kernels: the bits that the others must give.
#pragma once

#include "cpu/gemm.h"

namespace glm5::generic {

// The tree of gemm: total += (chain over even k) + (chain over odd k), 32 k at a time; zero beyond `length`.
template <class Left, class Right>
GLM5_INLINE f32 add_products(i64 length, f32 total, Left left, Right right) {
  for (i64 step = 0; step < length; step += cpu::kGemmStep) {
    f32 a[cpu::kGemmStep], b[cpu::kGemmStep];
    for (i64 k = 0; k < cpu::kGemmStep; ++k) {
      a[k] = step + k < length ? left(step + k) : 0.0f;
      b[k] = step + k < length ? right(step + k) : 0.0f;
    }
    total += cpu::multiply_step(a, b);
  }
  return total;
}

}  // namespace glm5::generic
