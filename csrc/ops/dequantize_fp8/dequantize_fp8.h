// dequantize_fp8: x = values * scale, rounded once to the type of x; the inverse of quantize_fp8, in the shape of its
// x.
//
// A value 0x7f or 0xff gives NaN, the same one on every machine: 0x7fc0 in bf16, 0x7e00 in f16, 0x7fc00000 in f32. Rows
// that no expert owns become zero.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5 {

struct DequantizeFp8Args {
  Tensor<const e4m3, 2> values;  // [rows, cols]; 128x1: [cols, rows]; row-major
  Tensor<const f32, 2> scales;   // as quantize_fp8 writes them
  Fp8Group group;
  Tensor<const i32, 1> offsets;  // as for quantize_fp8
  FloatTensor<2> x;              // [rows, cols], unit stride along cols
};

void dequantize_fp8_cpu(const DequantizeFp8Args&);
void dequantize_fp8_cuda(const DequantizeFp8Args&, void* stream);

}  // namespace glm5
