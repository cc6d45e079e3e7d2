// What types and ranks do not show of moe_route's arguments; for its doors, before a kernel runs.
#pragma once

#include "core/error.h"
#include "ops/moe_route/moe_route.h"

namespace glm5 {

inline void check_moe_route_sizes(const char* op, i64 experts, i64 topk) {
  require(experts <= kMostExperts, op, ": at most ", kMostExperts, " experts, got ", experts);
  require(topk <= kMostChosen, op, ": topk must be at most ", kMostChosen, ", got ", topk);
}

inline void check_moe_route(const MoeRouteArgs& args) {
  const i64 experts = args.logits.shape[1], topk = args.experts.shape[1];
  check_moe_route_sizes("moe_route", experts, topk);
  require(1 <= args.n_group && args.n_group <= kMostChosen && experts % args.n_group == 0,
          "moe_route: n_group must divide the ", experts, " experts and be at most ", kMostChosen, ", got ",
          args.n_group);
  require(1 <= args.topk_group && args.topk_group <= args.n_group,
          "moe_route: topk_group must be 1 .. n_group, got ", args.topk_group);
  require(topk <= experts / args.n_group * args.topk_group, "moe_route: topk must be at most the ",
          experts / args.n_group * args.topk_group, " experts of ", args.topk_group, " groups, got ", topk);
}

}  // namespace glm5
