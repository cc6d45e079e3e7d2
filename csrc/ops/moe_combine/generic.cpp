#include "ops/moe_combine/kernel.h"

namespace glm5::generic {
namespace {

struct Machine {
  using Lanes = ScalarLanes;
  using Vector = cpu::OneNumber;
};

}  // namespace

void moe_combine(const MoeCombineArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_combine::run<Machine>(args, begin, end);
}
void moe_combine_rows(const MoeCombineBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_combine::run_rows<Machine>(args, begin, end);
}
void moe_combine_weights(const MoeCombineBwdArgs& args, i64 begin, i64 end, i64) {
  glm5::moe_combine::run_weights<Machine>(args, begin, end);
}

}  // namespace glm5::generic
