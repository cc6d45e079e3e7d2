#include "cpu/vector_avx512.h"
#include "ops/moe_dispatch/kernel.h"

namespace glm5::avx512 {

void moe_dispatch(const MoeDispatchArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_dispatch::run<glm5::moe_dispatch::StreamingCopy<Vector>>(args, begin, end);
}

}  // namespace glm5::avx512
