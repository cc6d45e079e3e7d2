// What types and ranks do not show of moe_dispatch's arguments; for its doors, before a kernel runs.
#pragma once

#include "core/error.h"
#include "ops/moe_dispatch/moe_dispatch.h"

namespace glm5 {

inline void check_moe_dispatch(const MoeDispatchArgs& args) {
  const i64 count = args.offsets.shape[0] - 1, assignments = args.experts.shape[0] * args.experts.shape[1];
  require(0 <= count && count <= kMostLocalExperts, "moe_dispatch: 0 .. ", kMostLocalExperts, " experts, got ", count);
  require(assignments < (i64{1} << 31), "moe_dispatch: tokens * topk must be below 2^31, got ", assignments);
}

}  // namespace glm5
