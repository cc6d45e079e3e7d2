// What a failed call leaves behind: an error code, and the sentence that cudaGetErrorString then returns for it.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <string>

namespace glm5::emulator {

// Runs the body of an API function: faults and refusals become the last error.
template <class F>
cudaError_t guarded(F body, cudaError_t refusal = cudaErrorInvalidValue) noexcept;

cudaError_t remember(cudaError_t code, const std::string& sentence) noexcept;
cudaError_t remember_current_exception(cudaError_t refusal) noexcept;
cudaError_t last_error(bool clear) noexcept;
const char* sentence_of(cudaError_t code) noexcept;
const std::string& last_sentence() noexcept;
const std::string& last_check() noexcept;

template <class F>
cudaError_t guarded(F body, cudaError_t refusal) noexcept {
  try {
    body();
    return cudaSuccess;
  } catch (...) {
    return remember_current_exception(refusal);
  }
}

}  // namespace glm5::emulator
