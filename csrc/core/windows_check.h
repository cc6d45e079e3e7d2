// Checks of indices that lie in host memory: windows of keys, and the pages that they reach. For doors, before a kernel
// runs; ops/_index_checks.py has the same sentences for tensors on a GPU.
#pragma once

#include "core/error.h"
#include "core/glm5.h"

namespace glm5 {

// windows: [rows, 2], each [start, end) within 0 .. keys.
inline void check_windows(const char* op, const Tensor<const i32, 2>& windows, i64 keys) {
  for (i64 t = 0; t < windows.shape[0]; ++t) {
    const i64 start = *windows.at(t, 0), end = *windows.at(t, 1);
    require(0 <= start && start <= end && end <= keys, op, ": windows must be [start, end) with 0 <= start <= end <= ",
            keys, "; windows[", t, "] is [", start, ", ", end, ")");
  }
}

// Checked windows of logical keys, whose pages stand in block_table [sequences, max_pages].
inline void check_pages(const char* op, const Tensor<const i32, 2>& block_table, const Tensor<const i32, 1>& sequences,
                        const Tensor<const i32, 2>& windows, i64 pages) {
  for (i64 t = 0; t < sequences.shape[0]; ++t) {
    const i64 sequence = *sequences.at(t);
    require(0 <= sequence && sequence < block_table.shape[0], op, ": sequences must be rows of block_table, below ",
            block_table.shape[0], "; sequences[", t, "] is ", sequence);
    const i64 start = *windows.at(t, 0), end = *windows.at(t, 1);
    if (start == end) continue;
    for (i64 p = start / kPage; p <= (end - 1) / kPage; ++p) {
      const i64 page = *block_table.at(sequence, p);
      require(0 <= page && page < pages, op, ": block_table must have pages below ", pages,
              " wherever a window reaches; block_table[", sequence, ", ", p, "] is ", page);
    }
  }
}

}  // namespace glm5
