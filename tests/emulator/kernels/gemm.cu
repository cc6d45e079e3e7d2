// gemm for tests of the emulator, as fp8_gemm.cu.
#include "ops/gemm/sm90.cu"

#include <exception>
#include <string>

namespace glm5 {
void gemm_f32_cuda(const GemmArgs&, cudaStream_t) { require(false, "gemm: not in this door"); }
}  // namespace glm5

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::GemmArgs* args, int variant, int sms) {
  using namespace glm5::gemm_sm90;
  static std::string sentence;
  try {
    const Problem problem = check_limits(*args);
    const Plan plan = plan_of(*args, problem);
    glm5::require(can_run(kVariants[variant], plan.layout, sms), "this variant cannot run this problem");
    const Config config = config_of(variant, problem.m, problem.n, problem.batch, sms);
    run(*args, plan, config, glm5::cuda::require_sm90("gemm"), nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
