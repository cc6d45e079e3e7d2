// indexer_logits_bwd for tests of the emulator, as fp8_gemm.cu: bf16 and 32 heads alone.
#include "ops/indexer_logits/bwd_sm90.cu"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::IndexerLogitsBwdArgs* args, int, int) {
  using namespace glm5;
  static std::string sentence;
  try {
    const cuda::Device device = cuda::require_sm90("indexer_logits_bwd");
    indexer_logits_bwd_sm90::launch_queries<bf16, 32>(*args, device, nullptr);
    indexer_logits_bwd_sm90::launch_keys<32>(*args, device, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
