// The CPU kernels' items of work: strips of rows.
#pragma once

#include "ops/swiglu/swiglu.h"

namespace glm5::swiglu {

constexpr i64 kStrip = 1024;  // columns of an item: a multiple of the groups that share a scale

struct Strip {
  i64 row, begin, end;
};

GLM5_INLINE i64 strips_of(const SwigluInputs& inputs) { return ceil_div(inputs.intermediate(), kStrip); }

GLM5_INLINE Strip strip_of(const SwigluInputs& inputs, i64 item) {
  const i64 strips = strips_of(inputs), begin = item % strips * kStrip;
  return {item / strips, begin, smaller(begin + kStrip, inputs.intermediate())};
}

}  // namespace glm5::swiglu
