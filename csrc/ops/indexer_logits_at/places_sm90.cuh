// What both kernels of indexer_logits_at share on sm_90a: a block has one token, whose keys come 64 places at a time.
#pragma once

#include "cuda/indexer_token.cuh"
#include "ops/indexer_logits_at/indexer_logits_at.h"

namespace glm5::at_sm90 {

using namespace indexer_token;

static_assert(Config<bf16, 32>::kTile == kAtChunk);

template <class C>
struct Tiles {
  Rows<C> queries, keys[2];
};

__device__ __forceinline__ i64 key_of(const Tensor<const i32, 2>& indices, i64 keys, i64 token, i64 place) {
  if (place >= indices.shape[1]) return -1;
  const i64 key = __ldg(indices.at(token, place));
  return key < keys ? key : -1;
}

// Starts the copy of the keys of places [first, first + 64); one group.
template <class C, class Element>
__device__ __forceinline__ void load_places(const IndexerOperands& operands, const Tensor<const i32, 2>& indices,
                                            i64 token, i64 first, Rows<C>& to) {
  load_keys<C, Element>(operands, to,
                        [&](int row) { return key_of(indices, operands.k.shape[0], token, first + row); });
  ptx::cp_async_commit_group();
}

}  // namespace glm5::at_sm90
