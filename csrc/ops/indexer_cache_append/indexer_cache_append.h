// indexer_cache_append: an index key is normalised, rotated, perhaps mixed by a Hadamard matrix, rounded to bf16, and
// stored in a paged cache, as bf16 or quantised.
//
//   n = LayerNorm(k; norm_weight, norm_bias, eps)
//   the first 64 values are 32 pairs (n[2i], n[2i+1]), turned in place by the token's angle i: interleaved rope
//   n <- H n / sqrt(128) where hadamard; H is Sylvester's matrix
//   key = bf16(n)
//   a cache of bf16 stores it; a cache of bytes stores e4m3(key / scale) and the scale, as quantize_fp8 1x128 would
//
// A page of the byte cache has 64 rows of 128 values and then their 64 scales (f32). A slot is page * 64 + row; a token
// whose slot is -1 stores nothing. Slots of one call must differ.
//
// The tree, the same bits on every machine; no multiplication is fused with an addition. A sum of 128 values has 32
// chains, chain j over the values j, j + 32, j + 64, j + 96; then chain j += chain j + 16 for j < 16, and so on with 8,
// 4, 2, 1. mean = sum / 128; variance = sum of (k - mean)^2 / 128; n = (k - mean) * (1 / sqrt(variance + eps)) * weight
// + bias, from left to right; rope: x cos - y sin, y cos + x sin, each product rounded; the Hadamard matrix is seven
// stages of sums and differences at distances 1, 2, 4, .. 64, and one multiplication at the end.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"

namespace glm5 {

constexpr i64 kIndexDim = 128;       // values of an index key
constexpr i64 kIndexRopePairs = 32;  // of them turned: the first 64

struct IndexerCacheAppendArgs {
  FloatTensor<2> k;            // bf16 or f32 [tokens, 128], unit stride along the second dimension
  FloatTensor<1> norm_weight;  // bf16 or f32 [128], contiguous
  FloatTensor<1> norm_bias;    // of norm_weight's type
  f32 eps;
  Tensor<const i32, 1> positions;    // [tokens], rows of cos_sin
  Tensor<const f32, 3> cos_sin;      // [max_positions, 32, 2], row-major
  Tensor<const i64, 1> cache_slots;  // [tokens], page * 64 + row, or -1
  bool hadamard, power_of_two;
  Tensor<u8, 2> byte_cache;    // [pages, 64 * 132], unit stride along the second; or
  Tensor<bf16, 3> bf16_cache;  // [pages, 64, 128], contiguous pages; one of the two exists
};

GLM5_INLINE i64 pages_of(const IndexerCacheAppendArgs& args) {
  return args.byte_cache.exists() ? args.byte_cache.shape[0] : args.bf16_cache.shape[0];
}

void indexer_cache_append_cpu(const IndexerCacheAppendArgs&);
void indexer_cache_append_cuda(const IndexerCacheAppendArgs&, void* stream);

}  // namespace glm5
