// swiglu: out = silu(gate) * up, of rows that hold gate and up side by side; perhaps quantised on the way out.
//
//   out[r, c] = bf16(g / (1 + exp(-g)) * u)    g = gate_up[r, c], u = gate_up[r, intermediate + c]
//
// In f32 by core/exp.h, each operation rounded, then once to bf16: the same bits on every machine. With a limit, g is
// held to at most the limit and u to within -limit .. limit first; NaN stays NaN. swiglu_fp8 stores what quantize_fp8
// 1x128 makes of out, to the bit.
//
// The gradient of d, with s = 1 / (1 + exp(-g)), is zero where the limit holds g or u, and else
//   d_up = d * (g * s)    d_gate = (d * u) * (s * fma(g, 1 - s, 1))
//
// With offsets (of experts, ascending from 0) the rows from the last one on are not read; there out and the gradient
// are zeros, of scale amax_floor / 448. A last offset beyond the rows counts as their number, a negative one as 0.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5 {

// What both passes read.
struct SwigluInputs {
  FloatTensor<2> gate_up;        // bf16 or f32, [rows, 2 * intermediate], unit stride along the columns
  Tensor<const i32, 1> offsets;  // [experts + 1], or it does not exist
  f32 limit;                     // above 0; infinity for none

  GLM5_INLINE i64 rows() const { return gate_up.shape[0]; }
  GLM5_INLINE i64 intermediate() const { return gate_up.shape[1] / 2; }
  GLM5_INLINE i64 live_rows() const {
    if (!offsets.exists() || offsets.shape[0] == 0) return rows();
    return smaller(larger(*offsets.at(offsets.shape[0] - 1), 0), rows());
  }
};

// Either out or values and scales exist.
struct SwigluArgs {
  SwigluInputs inputs;
  Tensor<bf16, 2> out;     // [rows, intermediate], row-major
  Tensor<e4m3, 2> values;  // [rows, intermediate], row-major
  Tensor<f32, 2> scales;   // [rows, ceil(intermediate/128)], column-major
  f32 amax_floor;
  bool power_of_two;
};

struct SwigluBwdArgs {
  SwigluInputs inputs;
  Tensor<const bf16, 2> d_out;  // [rows, intermediate], unit stride along the columns
  FloatTensor<2> d_gate_up;     // as gate_up, row-major
};

void swiglu_cpu(const SwigluArgs&);
void swiglu_cuda(const SwigluArgs&, void* stream);
void swiglu_bwd_cpu(const SwigluBwdArgs&);
void swiglu_bwd_cuda(const SwigluBwdArgs&, void* stream);

}  // namespace glm5
