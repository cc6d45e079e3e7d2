// The seams between the files of indexer_logits on sm_90a: one .cu per layout of keys. Without CUDA: bind.cpp may
// include it.
#pragma once

#include "ops/indexer_logits/indexer_logits.h"

namespace glm5::cuda {
struct Device;
}

namespace glm5::indexer_logits_sm90 {

struct KernelArgs;

// indexer_logits with spans of so many tiles on so many blocks, for tests that compare the bits of different cuts.
void run_cut(const IndexerLogitsArgs& args, int span_tiles, int blocks, void* stream);

void launch_paged(const KernelArgs& args, bool is_e4m3, i64 heads, const cuda::Device& device, const char* op,
                  void* stream);

}  // namespace glm5::indexer_logits_sm90
