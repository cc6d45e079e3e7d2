#include "ops/moe_dispatch/kernel.h"

namespace glm5::generic {
namespace {

struct PlainCopy {
  GLM5_INLINE static bool can_stream(const Tensor<u8, 2>&) { return false; }
  GLM5_INLINE static void stream(u8*, const u8*, i64) {}
  GLM5_INLINE static void fence() {}
};

}  // namespace

void moe_dispatch(const MoeDispatchArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_dispatch::run<PlainCopy>(args, begin, end);
}

}  // namespace glm5::generic
