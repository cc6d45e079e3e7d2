// indexer_topk on sm_90a with keys in the pages of a cache.
#include "ops/indexer_topk/kernel_sm90.cuh"
#include "ops/indexer_topk/launch_sm90.h"

namespace glm5::indexer_topk_sm90 {

void launch_paged(const KernelArgs& args, bool is_e4m3, i64 heads, const cuda::Device& device, const char* op,
                  void* stream) {
  launch_heads<true>(args, is_e4m3, heads, device, op, stream);
}

}  // namespace glm5::indexer_topk_sm90
