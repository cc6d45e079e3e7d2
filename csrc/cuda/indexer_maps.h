// Host side of the indexer's kernels: limits, tensor maps, and what every kernel that scores is given.
#pragma once

#include "core/indexer.h"
#include "cuda/indexer_plan.h"
#include "cuda/tma_descriptor.h"

namespace glm5::cuda {

// One call, by value.
struct IndexerScoring {
  CUtensorMap q;       // [tokens, heads, dim]
  CUtensorMap keys;    // [1, keys, dim] or [pages, 64, dim]
  CUtensorMap scales;  // e4m3: [1, keys] or [pages, 64 behind the values]
  Tensor<const f32, 2> weights;
  Tensor<const i32, 2> windows;
  Tensor<const i32, 2> block_table;  // paged
  Tensor<const i32, 1> sequences;    // paged
  int scales_column;                 // of the first key's scale in its map
  int tokens, pages;
  int keys_end;  // windows are clamped to [0, keys_end)
  IndexerPlan plan;
};

// The limits of these kernels; that shapes agree was checked by the caller.
inline void check_indexer_limits(const IndexerOperands& operands, const char* op) {
  const i64 tokens = operands.q.shape[0], heads = operands.q.shape[1], dim = operands.q.shape[2];
  constexpr i64 kLargest = (i64{1} << 31) - 1024;  // so that the row after the last tile still fits 32 bits
  require(dim == kIndexerDim, op, ": dim must be ", kIndexerDim, " on CUDA, got ", dim);
  require(heads == 32 || heads == 64, op, ": heads must be 32 or 64 on CUDA, got ", heads);
  require(tokens <= kLargest && operands.keys() <= kLargest, op, ": tokens and keys must be at most ", kLargest,
          " on CUDA, got ", tokens, " and ", operands.keys());
  require(operands.is_paged || !operands.q.is_e4m3 || operands.k_scales.stride[0] == 1, op,
          ": k_scales must have unit stride on CUDA, got ", operands.k_scales.stride[0]);
}

namespace indexer_maps {

struct ElementOf {
  CUtensorMapDataType dtype;
  i64 bytes;
  int columns;  // in 128 bytes
};

inline ElementOf element_of(const IndexerOperands& operands) {
  if (operands.q.is_e4m3) return {CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, 128};
  return {CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, 64};
}

inline CUtensorMap q_map(const IndexerOperands& operands, const char* op) {
  const ElementOf element = element_of(operands);
  const auto& q = operands.q;
  return tma_descriptor({.dtype = element.dtype,
                         .element_bytes = element.bytes,
                         .data = q.data,
                         .rows = q.shape[1],
                         .columns = kIndexerDim,
                         .row_stride = q.stride[1],
                         .box_rows = static_cast<int>(q.shape[1]),
                         .box_columns = element.columns,
                         .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                         .batches = q.shape[0],
                         .batch_stride = q.stride[0],
                         .box_batches = indexer_queries(q.shape[1])},
                        op, "q");
}

inline CUtensorMap keys_map(const IndexerOperands& operands, const char* op) {
  const ElementOf element = element_of(operands);
  TmaMatrix keys{.dtype = element.dtype,
                 .element_bytes = element.bytes,
                 .data = operands.k.data,
                 .rows = operands.k.shape[0],
                 .columns = kIndexerDim,
                 .row_stride = operands.k.stride[0],
                 .box_rows = kIndexerTile,
                 .box_columns = element.columns,
                 .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                 .batches = 1};
  if (operands.is_paged) {
    const i64 page_bytes = operands.cache.shape[0] == 1 ? operands.page_bytes() : operands.cache.stride[0];
    keys.data = operands.cache.data;
    keys.rows = kIndexerTile;
    keys.row_stride = kIndexerDim;
    keys.batches = operands.cache.shape[0];
    keys.batch_stride = page_bytes / element.bytes;
  }
  return tma_descriptor(keys, op, operands.is_paged ? "cache" : "k");
}

// How far k_scales starts behind a multiple of 16 bytes, in values: the map begins there, copies never do.
inline int scales_shift(const IndexerOperands& operands) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(operands.k_scales.data) % kTmaAlignment / sizeof(f32));
}

inline CUtensorMap scales_map(const IndexerOperands& operands, const char* op) {
  TmaMatrix scales{.dtype = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                   .element_bytes = sizeof(f32),
                   .data = operands.k_scales.data - scales_shift(operands),
                   .rows = 1,
                   .columns = operands.k_scales.shape[0] + scales_shift(operands),
                   .row_stride = 0,
                   .box_rows = 1,
                   .box_columns = kIndexerTile,
                   .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE};
  if (operands.is_paged) {
    scales.data = operands.cache.data;
    scales.rows = operands.cache.shape[0];
    scales.columns = operands.page_bytes() / static_cast<i64>(sizeof(f32));
    scales.row_stride = operands.cache.stride[0] / static_cast<i64>(sizeof(f32));
  }
  return tma_descriptor(scales, op, operands.is_paged ? "cache" : "k_scales");
}

}  // namespace indexer_maps

// tokens > 0. Where there is nothing to read (no keys, no pages), every window counts as empty.
inline IndexerScoring indexer_scoring(const IndexerOperands& operands, const IndexerPlan& plan, const char* op) {
  const i64 pages = operands.is_paged ? operands.cache.shape[0] : 1;
  require(plan.items() < (i64{1} << 31) - 1024, op, ": ", plan.blocks, " blocks of tokens and ", plan.spans,
          " spans of keys are more items than 32 bits count");
  IndexerScoring scoring{.q = {},
                         .keys = {},
                         .scales = {},
                         .weights = operands.weights,
                         .windows = operands.windows,
                         .block_table = operands.block_table,
                         .sequences = operands.sequences,
                         .scales_column = kIndexerTile * kIndexerDim / static_cast<int>(sizeof(f32)),
                         .tokens = static_cast<int>(operands.q.shape[0]),
                         .pages = static_cast<int>(pages),
                         .keys_end = pages == 0 ? 0 : static_cast<int>(operands.keys()),
                         .plan = plan};
  if (scoring.keys_end == 0) return scoring;
  scoring.q = indexer_maps::q_map(operands, op);
  scoring.keys = indexer_maps::keys_map(operands, op);
  if (operands.q.is_e4m3) {
    scoring.scales = indexer_maps::scales_map(operands, op);
    if (!operands.is_paged) scoring.scales_column = indexer_maps::scales_shift(operands);
  }
  return scoring;
}

}  // namespace glm5::cuda
