// indexer_topk: the first topk keys of each token's window under (score descending, index ascending), by the scores of
// indexer_logits, which never exist as a matrix.
//
// The same indices, margins and fingerprints, to the bit, as topk_select of indexer_logits (csrc/core/topk.h has the
// order). The paged form stores positions, or with `physical` slots of the cache. On CUDA a token whose sequence the
// table lacks counts as one with an empty window.
#pragma once

#include "core/indexer.h"
#include "core/topk.h"

namespace glm5 {

struct IndexerTopkArgs {
  IndexerOperands operands;
  bool physical;                // paged keys: store slots
  Tensor<i32, 2> indices;       // [tokens, topk]
  Tensor<f32, 1> margins;       // [tokens], or [0]: not asked for
  Tensor<i64, 1> fingerprints;  // [tokens], or [0]
  Tensor<u8, 1> workspace;      // indexer_topk_workspace_bytes(), or on CUDA workspace_bytes_of() in config.h
};

// Scratch of one call on the CPU: candidates of a few tokens for every thread, O(topk), and where tokens are fewer than
// threads O(threads * topk) in all.
i64 indexer_topk_workspace_bytes(i64 tokens, i64 keys, i64 heads, i64 dim, i64 topk, bool margins);

// Both for dense and for paged keys.
void indexer_topk_cpu(const IndexerTopkArgs&);
void indexer_topk_cuda(const IndexerTopkArgs&, void* stream);

}  // namespace glm5
