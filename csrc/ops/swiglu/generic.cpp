#include "ops/swiglu/kernel.h"

namespace glm5::generic {
namespace {

struct Machine {
  using Lanes = ScalarLanes;
  using Vector = cpu::OneNumber;
};

}  // namespace

void swiglu(const SwigluArgs& args, i64 begin, i64 end, i64) { glm5::swiglu::run<Machine>(args, begin, end); }
void swiglu_bwd(const SwigluBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::swiglu::run_backward<Machine>(args, begin, end);
}

}  // namespace glm5::generic
