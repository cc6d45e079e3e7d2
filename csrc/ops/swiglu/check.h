// What types and ranks do not show of swiglu's inputs; for its doors, before a kernel runs.
#pragma once

#include "core/error.h"
#include "ops/swiglu/swiglu.h"

namespace glm5 {

inline void check_swiglu(const char* op, const SwigluInputs& inputs) {
  require(inputs.gate_up.dtype != Float::f16, op, ": gate_up must be bf16 or f32, got f16");
  require(inputs.gate_up.shape[1] % 2 == 0, op, ": gate_up must have an even number of columns, got ",
          inputs.gate_up.shape[1]);
  require(inputs.limit > 0, op, ": limit must be above 0, got ", inputs.limit);
}

}  // namespace glm5
