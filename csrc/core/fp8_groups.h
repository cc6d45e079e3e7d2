// Which rows share a scale in the 128x1 form: pieces of 128 rows, which start anew at each expert when there are
// offsets.
//
// Expert e owns the rows offsets[e] .. offsets[e+1]; its first group is offsets[e] / 128 + e. These numbers ascend
// faster than groups are used, so no two experts share one, and rows / 128 + experts groups are always enough. Offsets
// out of range or out of order, which a kernel on a GPU cannot refuse, give other rows, but never one that x lacks.
#pragma once

#include "core/glm5.h"

namespace glm5 {

struct RowRange {
  i64 begin, end;
  GLM5_INLINE bool empty() const { return begin >= end; }
};

GLM5_INLINE i64 fp8_groups_of_rows(const Tensor<const i32, 1>& offsets, i64 rows) {
  return offsets.exists() ? rows / kFp8Group + offsets.shape[0] - 1 : ceil_div(rows, kFp8Group);
}

// offsets[expert], held within the rows of x.
GLM5_INLINE i64 expert_begin(const Tensor<const i32, 1>& offsets, i64 rows, i64 expert) {
  return smaller(larger(*offsets.at(expert), 0), rows);
}

GLM5_INLINE i64 first_group_of(const Tensor<const i32, 1>& offsets, i64 rows, i64 expert) {
  return expert_begin(offsets, rows, expert) / kFp8Group + expert;
}

// The last expert whose first group is not beyond this one (or 0), by halving [low, high).
GLM5_INLINE i64 expert_of_group(const Tensor<const i32, 1>& offsets, i64 rows, i64 group) {
  i64 low = 0, high = offsets.shape[0] - 1;
  while (high - low > 1) {
    const i64 middle = (low + high) / 2;
    (first_group_of(offsets, rows, middle) > group ? high : low) = middle;
  }
  return low;
}

// The rows of a group of that expert; none where no row falls into it.
GLM5_INLINE RowRange rows_of_expert_group(const Tensor<const i32, 1>& offsets, i64 rows, i64 expert, i64 group) {
  if (offsets.shape[0] <= 1) return {0, 0};
  const i64 first = expert_begin(offsets, rows, expert), last = expert_begin(offsets, rows, expert + 1);
  const i64 begin = first + (group - first_group_of(offsets, rows, expert)) * kFp8Group;
  if (begin < first || begin >= last) return {0, 0};
  return {begin, smaller(begin + kFp8Group, last)};
}

GLM5_INLINE RowRange rows_of_group(const Tensor<const i32, 1>& offsets, i64 rows, i64 group) {
  if (!offsets.exists()) return {smaller(group * kFp8Group, rows), smaller((group + 1) * kFp8Group, rows)};
  return rows_of_expert_group(offsets, rows, expert_of_group(offsets, rows, group), group);
}

// The rows of the window [128 w, 128 w + 128) that lie before the first expert's, and those after the last one's.
GLM5_INLINE RowRange rows_before_experts(const Tensor<const i32, 1>& offsets, i64 rows, i64 window) {
  const i64 first = expert_begin(offsets, rows, 0);
  return {window * kFp8Group, smaller(smaller((window + 1) * kFp8Group, rows), first)};
}
GLM5_INLINE RowRange rows_after_experts(const Tensor<const i32, 1>& offsets, i64 rows, i64 window) {
  const i64 last = larger(expert_begin(offsets, rows, 0), expert_begin(offsets, rows, offsets.shape[0] - 1));
  return {larger(window * kFp8Group, last), smaller((window + 1) * kFp8Group, rows)};
}

}  // namespace glm5
