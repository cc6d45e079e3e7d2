// What the CPU kernels of fp8_gemm and gemm share: the sizes of their tiles and the layout of their workspace.
//
// m is taken in chunks. A chunk's rows of a are first brought into the form that the inner loops read ("packed"), once;
// then every item, a tile of columns for a block of the chunk's rows, walks along k. All numbers are those of the
// loops, not of the result: the summation tree knows none of them but the 128 of a block.
#pragma once

#include "core/tensor.h"

namespace glm5::cpu {

constexpr i64 kGemmBlock = 128;       // k of a block
constexpr i64 kGemmStep = 32;         // k of a step of the summation tree
constexpr i64 kGemmTile = 64;         // columns of an item: never two scale blocks
constexpr i64 kGemmPackRows = 16;     // rows of an item of the packing phase
constexpr i64 kGemmChunk = 1024;      // rows packed at once
// Rows of an item. 256: a block of packed f32 (128 KiB) and the totals (64 KiB) stay in a 512 KiB L2 cache.
constexpr i64 kGemmVectorRows = 256;
// 1024: with AMX the work on a decoded block of b must be long enough to hide its decoding; L2 has 2 MiB there.
constexpr i64 kGemmTileRows = 1024;

GLM5_INLINE i64 gemm_item_rows(bool with_amx) { return with_amx ? kGemmTileRows : kGemmVectorRows; }

// A thread's scratch: totals, a decoded block of b, and small change.
constexpr i64 kGemmTotalBytes = kGemmTileRows * kGemmTile * 4;
constexpr i64 kGemmPanelBytes = kGemmTile * kGemmBlock * 4;
constexpr i64 kGemmStageBytes = 32 * 1024;
constexpr i64 kGemmScratchBytes = kGemmTotalBytes + kGemmPanelBytes + kGemmStageBytes;

// Elements of one packed row; the longest form is f32, rows come in tiles of 16.
GLM5_INLINE i64 gemm_padded_k(i64 k) { return round_up(k, kGemmBlock); }
GLM5_INLINE i64 gemm_packed_bytes(i64 m, i64 k) {
  return round_up(smaller(m, kGemmChunk), kGemmPackRows) * gemm_padded_k(k) * 4;
}
// 64 more: the workspace is aligned to a cache line inside.
GLM5_INLINE i64 gemm_workspace_size(i64 m, i64 k, i64 threads) {
  return gemm_packed_bytes(m, k) + threads * kGemmScratchBytes + 64;
}

// Where an item lies: tiles of columns follow one another for the same rows, which stay in the caches.
struct GemmItem {
  i64 first_row, rows, first_column, columns;

  GLM5_INLINE GemmItem(i64 item, i64 m, i64 n, i64 item_rows) {
    const i64 tiles = ceil_div(n, kGemmTile);
    first_row = item / tiles * item_rows;
    rows = smaller(item_rows, m - first_row);
    first_column = item % tiles * kGemmTile;
    columns = smaller(kGemmTile, n - first_column);
  }
};

// The workspace of one call, seen by one thread.
struct GemmWorkspace {
  u8* packed;
  f32* totals;
  f32* panel;  // the decoded block of b
  u8* stage;

  GLM5_INLINE GemmWorkspace(const Tensor<u8, 1>& workspace, i64 m, i64 k, i64 thread) {
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    packed = workspace.data + (round_up(static_cast<i64>(address), 64) - static_cast<i64>(address));
    u8* own = packed + gemm_packed_bytes(m, k) + thread * kGemmScratchBytes;
    totals = reinterpret_cast<f32*>(own);
    panel = reinterpret_cast<f32*>(own + kGemmTotalBytes);
    stage = own + kGemmTotalBytes + kGemmPanelBytes;
  }
};

// The rows of a chunk as the vector kernels pack them: [block of rows][block of k][row][128], so that what a pair of
// blocks needs lies together.
struct PackedRows {
  f32* data;
  i64 rows, padded_k;

  GLM5_INLINE i64 rows_of_block(i64 first_row) const { return smaller(kGemmVectorRows, rows - first_row); }
  // 128 values of a row; rows of the same block follow at a distance of 128.
  GLM5_INLINE f32* at(i64 row, i64 k_block) const {
    const i64 first = row / kGemmVectorRows * kGemmVectorRows;
    return data + first * padded_k + (k_block * rows_of_block(first) + row - first) * kGemmBlock;
  }
};

}  // namespace glm5::cpu
