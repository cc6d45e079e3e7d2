// What a score of the indexer is made of, for the ops that need scores: queries, their heads' weights, and keys, which
// lie in a matrix or in the pages of a cache. The equation and its summation tree: ops/indexer_logits/indexer_logits.h.
#pragma once

#include "core/glm5.h"

namespace glm5 {

// Values of e4m3 or bf16.
template <int Rank>
struct IndexerTensor {
  const void* data;
  bool is_e4m3;
  i64 shape[Rank];
  i64 stride[Rank];  // in elements

  template <class T>
  GLM5_INLINE Tensor<const T, Rank> as() const {
    Tensor<const T, Rank> typed{static_cast<const T*>(data), {}, {}};
    for (int d = 0; d < Rank; ++d) {
      typed.shape[d] = shape[d];
      typed.stride[d] = stride[d];
    }
    return typed;
  }
};

// is_paged says which keys count: k and k_scales, or those from cache on.
struct IndexerOperands {
  IndexerTensor<3> q;            // e4m3 or bf16 [tokens, heads, dim], unit stride along dim
  Tensor<const f32, 2> weights;  // [tokens, heads]
  Tensor<const i32, 2> windows;  // [tokens, 2], the keys [start, end) of each token
  bool is_paged;
  IndexerTensor<2> k;             // the type of q, [keys, dim], unit stride along dim
  Tensor<const f32, 1> k_scales;  // [keys], with e4m3 only
  // A page is 64 rows of dim values of q's type; with e4m3 the 64 f32 scales of these rows follow.
  Tensor<const u8, 2> cache;         // [pages, bytes of a page], unit stride along the bytes
  Tensor<const i32, 2> block_table;  // [sequences, max_pages], a page of the cache; read only where a window reaches
  Tensor<const i32, 1> sequences;    // [tokens], a row of block_table

  GLM5_INLINE i64 keys() const { return is_paged ? block_table.shape[1] * kPage : k.shape[0]; }
  GLM5_INLINE i64 page_bytes() const { return kPage * (q.is_e4m3 ? q.shape[2] + 4 : q.shape[2] * 2); }
};

}  // namespace glm5
