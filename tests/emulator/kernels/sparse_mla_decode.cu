// sparse_mla_decode with schedule "fast" for tests of the emulator, as sparse_mla_attention.cu.
#include "ops/sparse_mla_attention/decode_sm90.cu"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::SparseMlaAttentionArgs* args, int, int) {
  static std::string sentence;
  try {
    glm5::sparse_mla_decode_fast_cuda(*args, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
