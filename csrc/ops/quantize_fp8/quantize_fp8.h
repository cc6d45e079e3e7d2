// quantize_fp8: values = e4m3(x / scale), one scale for each group of x; core/fp8.h has the formula.
//
// Groups are pieces of 128 values of a row (1x128), of a column (128x1), or blocks of 128 x 128; the last ones are
// ragged. The 128x1 form stores its output transposed, as the weight-gradient GEMM reads it. With offsets its groups
// start anew at each expert: expert e owns the rows offsets[e] .. offsets[e+1] and its first group is
// offsets[e] / 128 + e. Groups that no row falls into get scale 0, rows that no expert owns get values 0 and no scale.
//
// Offsets must ascend within 0 .. rows. On CUDA, where they are not looked at first, others give other values, but no
// access beyond the tensors. amax_floor must be at least 2^-117, so that scales are normal numbers.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5 {

struct QuantizeFp8Args {
  FloatTensor<2> x;               // [rows, cols], unit stride along cols
  Fp8Group group;
  bool power_of_two;
  f32 amax_floor;
  Tensor<const i32, 1> offsets;   // [experts + 1], only with 128x1; may not exist
  Tensor<e4m3, 2> values;         // [rows, cols]; 128x1: [cols, rows]; row-major
  Tensor<f32, 2> scales;          // 1x128: [rows, ceil(cols/128)] column-major, stride a multiple of 4
                                  // 128x128: [ceil(rows/128), ceil(cols/128)] row-major
                                  // 128x1: [cols, groups] column-major, stride a multiple of 4
};

void quantize_fp8_cpu(const QuantizeFp8Args&);
void quantize_fp8_cuda(const QuantizeFp8Args&, void* stream);

}  // namespace glm5
