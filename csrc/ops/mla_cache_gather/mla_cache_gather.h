// mla_cache_gather: rows of the latent cache, back as bf16.
//
//   out[i] = cache[cache_slots[i]]; of a cache of bytes the latent is bf16(e4m3 * scale), one rounding of the product
//
// The values that sparse_mla_decode attends to, to the bit. A slot of -1 gives a row of zeros.
#pragma once

#include "core/fp8.h"
#include "core/mla_cache.h"

namespace glm5 {

struct MlaCacheGatherArgs {
  MlaCache cache;                    // only read
  Tensor<const i64, 1> cache_slots;  // [rows], page * 64 + row, or -1
  Tensor<bf16, 2> out;               // [rows, 576], row-major
};

void mla_cache_gather_cpu(const MlaCacheGatherArgs&);
void mla_cache_gather_cuda(const MlaCacheGatherArgs&, void* stream);

}  // namespace glm5
