// mla_cache_append: a projected latent is normalised, its rope part rotated, and both are stored in a paged cache.
//
//   latent = bf16(norm_weight * T(kv[:512] / sqrt(mean(kv[:512]^2) + eps)))      T: kv's type
//   rope   = bf16(32 pairs (kv[512 + 2i], kv[513 + 2i]), turned by the token's angle i: interleaved rope)
//   a cache of bf16 stores latent and rope; a cache of bytes stores the latent as quantize_fp8 1x128 would, four groups
//   and their scales, and rope as bf16
//
// A token whose slot is -1 stores nothing. Slots of one call must differ.
//
// The tree, the same bits on every machine; no multiplication is fused with an addition. The sum of the 512 squares has
// 64 chains, chain j over the values j, j + 64, .. j + 448; then chain j += chain j + 32 for j < 32, and so on with 16,
// 8, 4, 2, 1. n = kv * (1 / sqrt(sum / 512 + eps)); rope: x cos - y sin, y cos + x sin, each product rounded.
#pragma once

#include "core/fp8.h"
#include "core/mla_cache.h"

namespace glm5 {

constexpr i64 kMlaChains = 64;

struct MlaCacheAppendArgs {
  FloatTensor<2> kv;           // bf16 or f32 [tokens, 576], unit stride along the second dimension
  FloatTensor<1> norm_weight;  // bf16 or f32 [512], contiguous
  f32 eps;
  Tensor<const i32, 1> positions;    // [tokens], rows of cos_sin
  Tensor<const f32, 3> cos_sin;      // [max_positions, 32, 2], row-major
  Tensor<const i64, 1> cache_slots;  // [tokens], page * 64 + row, or -1
  bool power_of_two;
  MlaCache cache;
};

void mla_cache_append_cpu(const MlaCacheAppendArgs&);
void mla_cache_append_cuda(const MlaCacheAppendArgs&, void* stream);

}  // namespace glm5
