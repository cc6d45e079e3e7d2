// fp8_gemm for tests of the emulator: one variant, with as many multiprocessors as the test likes. Includes the
// launcher's own file, or a copy with a planted fault, whatever the include path finds first.
#include "ops/fp8_gemm/sm90.cu"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::Fp8GemmArgs* args, int variant, int sms) {
  using namespace glm5::fp8_gemm_sm90;
  static std::string sentence;
  try {
    const Problem problem = check_limits(*args);
    glm5::require(can_run(kVariants[variant], args->b_scales_per_row, sms), "this variant cannot run this problem");
    const Config config = config_of(variant, problem.m, problem.n, args->b_scales_per_row, sms);
    run(*args, problem, config, glm5::cuda::require_sm90("fp8_gemm"), nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
