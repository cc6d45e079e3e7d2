// indexer_topk for tests of the emulator, as fp8_gemm.cu: dense e4m3 keys, 32 heads, `variant` splits on `sms` blocks,
// a look at the buffers after every tile.
#include "ops/indexer_topk/kernel_sm90.cuh"
#include "ops/indexer_topk/indexer_topk.h"

#include <exception>
#include <string>

// Null, or what went wrong.
extern "C" const char* glm5_door(const glm5::IndexerTopkArgs* args, int variant, int sms) {
  using namespace glm5;
  using namespace glm5::indexer_topk_sm90;
  static std::string sentence;
  try {
    const char* op = "indexer_topk";
    const i64 tokens = args->indices.shape[0], topk = args->indices.shape[1];
    const Plan plan = plan_of(tokens, args->operands.keys(), 32, topk, variant, 1, sms);
    require(workspace_bytes(plan, tokens) <= args->workspace.shape[0], "the workspace is too small");
    i32* splits = reinterpret_cast<i32*>(args->workspace.data + plan.buffer_bytes());
    const i64 left = tokens * plan.cut.splits * plan.slots;
    const KernelArgs kernel{cuda::indexer_scoring(args->operands, plan.cut, op),
                            plan,
                            false,
                            args->indices,
                            args->margins,
                            args->fingerprints,
                            reinterpret_cast<i32*>(args->workspace.data),
                            splits,
                            splits + left,
                            splits + 2 * left};
    launch_kernels<e4m3, 32, false>(kernel, cuda::require_sm90(op), op, nullptr);
    return nullptr;
  } catch (const std::exception& error) {
    sentence = error.what();
    return sentence.c_str();
  }
}
