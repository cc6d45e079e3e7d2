#include "ops/swiglu/kernel.h"

namespace glm5::generic {
namespace {

struct Machine {
  using Lanes = ScalarLanes;
  struct Vector {
    template <class T>
    GLM5_INLINE static f32 load_f32(const T* from) {
      return to_f32(*from);
    }
    GLM5_INLINE static void store_f32(f32* to, f32 x) { *to = x; }
    GLM5_INLINE static void store_f32(bf16* to, f32 x) { *to = to_bf16(x); }
  };
};

}  // namespace

void swiglu(const SwigluArgs& args, i64 begin, i64 end, i64) { glm5::swiglu::run<Machine>(args, begin, end); }
void swiglu_bwd(const SwigluBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::swiglu::run_backward<Machine>(args, begin, end);
}

}  // namespace glm5::generic
