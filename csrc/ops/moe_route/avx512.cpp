#include "cpu/avx512.h"
#include "ops/moe_route/kernel.h"

namespace glm5::avx512 {

void moe_route(const MoeRouteArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_route::run<Lanes>(args, begin, end);
}
void moe_route_bwd(const MoeRouteBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_route::run_backward<Lanes>(args, begin, end);
}

}  // namespace glm5::avx512
