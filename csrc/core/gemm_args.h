// The arguments of one matrix product, as kernels see it: a call of gemm or fp8_gemm, or one expert of grouped_gemm.
// The equations and summation trees: ops/gemm/gemm.h, ops/fp8_gemm/fp8_gemm.h.
#pragma once

#include "core/tensor.h"

namespace glm5 {

struct GemmArgs {
  FloatTensor<3> a;  // bf16 or f32 [batch, m, k], unit stride along m or k
  FloatTensor<3> b;  // the type of a, [batch, n, k], unit stride along n or k
  bool accumulate;
  FloatTensor<3> out;       // bf16 or f32 [batch, m, n], unit stride along n
  Tensor<u8, 1> workspace;  // gemm_workspace_bytes()
};

// A is e4m3, or bf16 without scales of its own: a_scales then has strides of zero, to a 1.
template <class A>
struct ScaledGemmArgs {
  Tensor<const A, 2> a;           // [m, k], unit stride along k
  Tensor<const f32, 2> a_scales;  // [m, ceil(k/128)] column-major, stride a multiple of 4
  Tensor<const e4m3, 2> b;        // [n, k], unit stride along k
  Tensor<const f32, 2> b_scales;  // [ceil(n/128), ceil(k/128)], any strides; or [n, ceil(k/128)], as a_scales
  bool b_scales_per_row;          // which of the two
  bool accumulate;
  FloatTensor<2> out;       // bf16 or f32 [m, n], unit stride along n
  Tensor<u8, 1> workspace;  // fp8_gemm_workspace_bytes()
};
using Fp8GemmArgs = ScaledGemmArgs<e4m3>;

}  // namespace glm5
