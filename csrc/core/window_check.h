// What the CPU doors of the sparse-attention ops ask of windows and block tables before a kernel follows them. The CUDA
// kernels cut windows to what is there instead; python/glm5_ops/ops/_indices.py asks the same with torch's operations.
#pragma once

#include "core/error.h"
#include "core/glm5.h"
#include "core/tensor.h"

namespace glm5 {

inline void check_windows(const char* op, const Tensor<const i32, 2>& windows, i64 keys) {
  for (i64 row = 0; row < windows.shape[0]; ++row) {
    const i64 start = *windows.at(row, 0), end = *windows.at(row, 1);
    require(0 <= start && start <= end && end <= keys, op, ": windows[", row, "] must be a range within the ", keys,
            " keys; got [", start, ", ", end, "]");
  }
}

// Rows whose window is empty look up no page. Without windows every row's is [0, keys).
inline void check_block_table(const char* op, const Tensor<const i32, 2>& table, const Tensor<const i32, 1>& sequences,
                              const Tensor<const i32, 2>& windows, i64 keys, i64 pages) {
  for (i64 row = 0; row < sequences.shape[0]; ++row) {
    const i64 start = windows.exists() ? *windows.at(row, 0) : 0, end = windows.exists() ? *windows.at(row, 1) : keys;
    const i64 sequence = *sequences.at(row);
    require(0 <= sequence && sequence < table.shape[0], op, ": sequences[", row,
            "] must be a row of block_table, which has ", table.shape[0], "; got ", sequence);
    if (start == end) continue;
    require(end <= table.shape[1] * kPage, op, ": the window of row ", row, " must end within the ", table.shape[1],
            " pages of block_table; got [", start, ", ", end, "]");
    for (i64 page = start / kPage; page <= (end - 1) / kPage; ++page) {
      const i64 entry = *table.at(sequence, page);
      require(0 <= entry && entry < pages, op, ": block_table[", sequence, ", ", page,
              "] must be a page of the cache, since the window of row ", row, " uses it; got ", entry);
    }
  }
}

}  // namespace glm5
