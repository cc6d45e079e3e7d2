// The CPU kernels' items of work: strips of tokens.
#pragma once

#include "ops/moe_combine/moe_combine.h"

namespace glm5::moe_combine {

constexpr i64 kStrip = 1024;  // columns of an item

struct Strip {
  i64 row, begin, end;
};

GLM5_INLINE i64 strips_of(const MoeCombineInputs& inputs) { return ceil_div(inputs.hidden(), kStrip); }

GLM5_INLINE Strip strip_of(const MoeCombineInputs& inputs, i64 item) {
  const i64 strips = strips_of(inputs), begin = item % strips * kStrip;
  return {item / strips, begin, smaller(begin + kStrip, inputs.hidden())};
}

}  // namespace glm5::moe_combine
