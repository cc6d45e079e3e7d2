// core/exp.h in kernels, with the bits of every processor.
#pragma once

#include "core/exp.h"

namespace glm5::cuda {

// The addition must not be fused with the product that exp_of ends with.
__device__ __forceinline__ f32 one_and_exp(f32 x) { return __fadd_rn(1.0f, exp_of<ScalarLanes>(x)); }

}  // namespace glm5::cuda
