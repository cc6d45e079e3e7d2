// How the CPU kernels cut x: every item is one area of whole groups, and all instruction sets cut alike.
#pragma once

#include "core/fp8_groups.h"
#include "ops/quantize_fp8/quantize_fp8.h"

namespace glm5::quantize {

// 1x128: the scales of 16 rows fill a cache line of the column-major scales; 32 groups of a row stream well.
// 128x128: four blocks side by side read 1 KiB (bf16) of a row at a time, and 128 KiB stay in a second-level cache.
// 128x1: 512 B of a row at a time, and 64 KiB to read again.
constexpr i64 kRowTile = 16, kRowCols = 4096;
constexpr i64 kBlockCols = 512;
constexpr i64 kColumnCols = 256;

struct Area {
  i64 row_begin, row_end;
  i64 col_begin, col_end;
  i64 group;  // 128x1: the group of these rows, or -1 where no expert owns them and the values are zero
};

GLM5_INLINE i64 cols_of_area(Fp8Group group) {
  return group == Fp8Group::row ? kRowCols : group == Fp8Group::block ? kBlockCols : kColumnCols;
}

GLM5_INLINE i64 count_areas(const QuantizeFp8Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const i64 strips = ceil_div(cols, cols_of_area(args.group));
  if (args.group == Fp8Group::row) return ceil_div(rows, kRowTile) * strips;
  if (args.group == Fp8Group::block) return ceil_div(rows, kFp8Group) * strips;
  // A window before and one after the experts' rows for every 128 rows; nearly all are empty.
  const i64 windows = args.offsets.exists() ? 2 * ceil_div(rows, kFp8Group) : 0;
  return (args.scales.shape[1] + windows) * strips;
}

GLM5_INLINE RowRange rows_without_expert(const QuantizeFp8Args& args, i64 window) {
  const i64 rows = args.x.shape[0];
  return window % 2 == 0 ? rows_before_experts(args.offsets, rows, window / 2)
                         : rows_after_experts(args.offsets, rows, window / 2);
}

GLM5_INLINE Area area_of(const QuantizeFp8Args& args, i64 item) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1], width = cols_of_area(args.group);
  const i64 strips = ceil_div(cols, width), piece = item / strips;
  const i64 col_begin = item % strips * width, col_end = smaller(col_begin + width, cols);
  if (args.group == Fp8Group::column) {
    const i64 groups = args.scales.shape[1];
    const RowRange range =
        piece < groups ? rows_of_group(args.offsets, rows, piece) : rows_without_expert(args, piece - groups);
    return {range.begin, range.end, col_begin, col_end, piece < groups ? piece : -1};
  }
  const i64 height = args.group == Fp8Group::row ? kRowTile : kFp8Group;
  return {piece * height, smaller((piece + 1) * height, rows), col_begin, col_end, 0};
}

// Rows that no expert owns: zeros.
GLM5_INLINE void clear_values(const QuantizeFp8Args& args, const Area& area) {
  for (i64 col = area.col_begin; col < area.col_end; ++col)
    for (i64 row = area.row_begin; row < area.row_end; ++row) *args.values.at(col, row) = {0};
}

}  // namespace glm5::quantize
