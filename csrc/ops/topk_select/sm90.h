// The CUDA door with its schedule given, for tests: every schedule must give the same bits.
#pragma once

#include "ops/topk_select/topk_select.h"

namespace glm5::topk_select_sm90 {

// cluster: 1, 2, 4 or 8 blocks to a row; staged_bytes: shared memory for keys or candidates, a multiple of 1024.
void run_variant(const TopkSelectArgs& args, int cluster, int staged_bytes, void* stream);

}  // namespace glm5::topk_select_sm90
