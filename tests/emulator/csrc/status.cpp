#include "status.h"

#include <string_view>

#include "report.h"

namespace glm5::emulator {
namespace {

struct Last {
  cudaError_t code = cudaSuccess, spoken = cudaSuccess;  // spoken: whose sentence `sentence` is
  std::string sentence, check;
};
thread_local Last last;

cudaError_t code_of(std::string_view check) {
  if (check == "assert") return cudaErrorAssert;
  if (check == "bounds" || check == "freed") return cudaErrorIllegalAddress;
  if (check == "alignment") return cudaErrorMisalignedAddress;
  if (check == "instruction") return cudaErrorInvalidPtx;
  if (check == "endless" || check == "deadlock") return cudaErrorLaunchTimeout;
  return cudaErrorLaunchFailure;
}

}  // namespace

cudaError_t remember(cudaError_t code, const std::string& sentence) noexcept {
  last = {code, code, sentence, "refusal"};
  return code;
}

cudaError_t remember_current_exception(cudaError_t refusal) noexcept {
  try {
    throw;
  } catch (const Fault& fault) {
    remember(code_of(fault.report().check), fault.what());
    last.check = fault.report().check;
  } catch (const std::exception& problem) {
    remember(refusal, problem.what());
  } catch (...) {
    remember(cudaErrorUnknown, "the emulator failed without a reason");
  }
  return last.code;
}

cudaError_t last_error(bool clear) noexcept {
  const cudaError_t code = last.code;
  if (clear) last.code = cudaSuccess;
  return code;
}

const char* sentence_of(cudaError_t code) noexcept {
  if (code == cudaSuccess) return "no error";
  return code == last.spoken ? last.sentence.c_str() : "an error of the emulated CUDA runtime";
}

const std::string& last_sentence() noexcept { return last.sentence; }
const std::string& last_check() noexcept { return last.check; }

}  // namespace glm5::emulator
