// topk_select: for each row the indices of the first topk keys of its window under (score descending, index ascending).
//
// min(topk, window length) keys are always chosen: the order is total, for any content (core/topk.h). They are stored
// ascending by index, then -1. With a block table logical index s is stored as the slot
// block_table[sequence, s / 64] * 64 + s % 64; the order stays that of s.
//
// margins: (worst chosen score) - (best score left out); +inf where nothing is left out, or only NaN; 0 where the two
// are equal. fingerprints: a hash of the set of chosen logical indices, whatever their slots; that of the empty set is
// 0.
//
// All results are exact functions of the scores: no schedule, thread count or machine shows in them. On the CPU windows
// and tables are looked at first. On CUDA windows are cut to the keys there are (and to the pages of the table), a
// sequence that the table lacks counts as an empty window, and what lies outside a window is never looked at.
#pragma once

#include "core/topk.h"

namespace glm5 {

struct TopkSelectArgs {
  Tensor<const f32, 2> scores;       // [rows, keys], unit stride along keys
  Tensor<const i32, 2> windows;      // [rows, 2]: start, end; may not exist: all keys
  Tensor<const i32, 2> block_table;  // [sequences, max_pages], unit stride along pages; may not exist
  Tensor<const i32, 1> sequences;    // [rows], a row of block_table; exists with it
  Tensor<i32, 2> indices;            // [rows, topk]
  Tensor<f32, 1> margins;            // [rows], or [0]: not asked for
  Tensor<i64, 1> fingerprints;       // [rows], or [0]
  Tensor<u8, 1> workspace;           // CPU: topk_select_workspace_bytes(...)
};

i64 topk_select_workspace_bytes(i64 rows, i64 keys, i64 topk, bool margins);

void topk_select_cpu(const TopkSelectArgs&);
void topk_select_cuda(const TopkSelectArgs&, void* stream);

}  // namespace glm5
