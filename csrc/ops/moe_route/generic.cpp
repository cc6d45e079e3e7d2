#include "ops/moe_route/kernel.h"

namespace glm5::generic {

void moe_route(const MoeRouteArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_route::run<ScalarLanes>(args, begin, end);
}
void moe_route_bwd(const MoeRouteBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_route::run_backward<ScalarLanes>(args, begin, end);
}

}  // namespace glm5::generic
