// The seams between the files of indexer_topk on sm_90a: one .cu per layout of keys. Without CUDA: bind.cpp may include
// it.
#pragma once

#include "ops/indexer_topk/config.h"
#include "ops/indexer_topk/indexer_topk.h"

namespace glm5::cuda {
struct Device;
}

namespace glm5::indexer_topk_sm90 {

struct KernelArgs;

// indexer_topk with a given cut (config.h), for tests that compare the results of different ones.
void run_cut(const IndexerTopkArgs& args, int splits, int chunk_tiles, int blocks, void* stream);

void launch_paged(const KernelArgs& args, bool is_e4m3, i64 heads, const cuda::Device& device, const char* op,
                  void* stream);

}  // namespace glm5::indexer_topk_sm90
