// indexer_logits for tests of the emulator, as fp8_gemm.cu: e4m3, 32 heads, spans of `variant` tiles on `sms` blocks.
#include "ops/indexer_logits/kernel_sm90.cuh"
#include "ops/indexer_logits/indexer_logits.h"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::IndexerLogitsArgs* args, int variant, int sms) {
  using namespace glm5;
  static std::string sentence;
  try {
    const char* op = "indexer_logits";
    const cuda::Device device = cuda::require_sm90(op);
    const cuda::IndexerPlan plan = cuda::indexer_plan(args->out.shape[0], args->out.shape[1], 32, variant, sms);
    const indexer_logits_sm90::KernelArgs kernel{cuda::indexer_scoring(args->operands, plan, op), args->out};
    if (args->operands.is_paged) {
      indexer_logits_sm90::launch_kernel<e4m3, 32, true>(kernel, device, op, nullptr);
    } else {
      indexer_logits_sm90::launch_kernel<e4m3, 32, false>(kernel, device, op, nullptr);
    }
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
