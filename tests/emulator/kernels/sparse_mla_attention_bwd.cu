// sparse_mla_attention_bwd for tests of the emulator, as fp8_gemm.cu; the other numbers of heads and dims are left out.
#include "ops/sparse_mla_attention/bwd_sm90.cu"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::SparseMlaAttentionBwdArgs* args, int, int) {
  static std::string sentence;
  try {
    glm5::sparse_mla_attention_bwd_cuda(*args, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
