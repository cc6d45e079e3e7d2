// How the CPU kernels cut the op: every item is one area with whole groups, and all instruction sets cut alike.
#pragma once

#include "core/fp8_groups.h"
#include "ops/dequantize_fp8/dequantize_fp8.h"

namespace glm5::dequantize {

// 1x128 and 128x128: rows and columns that stream. 128x1: what is turned stays in a first-level cache.
constexpr i64 kTileRows = 16, kTileCols = 4096;
constexpr i64 kColumnCols = 128;

struct Area {
  i64 row_begin, row_end;
  i64 col_begin, col_end;
  i64 group;  // 128x1: the group of these rows, or -1 where no expert owns them and x is zero
};

GLM5_INLINE i64 count_areas(const DequantizeFp8Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  if (args.group != Fp8Group::column) return ceil_div(rows, kTileRows) * ceil_div(cols, kTileCols);
  // A window before and one after the experts' rows for every 128 rows; nearly all are empty.
  const i64 windows = args.offsets.exists() ? 2 * ceil_div(rows, kFp8Group) : 0;
  return (args.scales.shape[1] + windows) * ceil_div(cols, kColumnCols);
}

GLM5_INLINE RowRange rows_without_expert(const DequantizeFp8Args& args, i64 window) {
  const i64 rows = args.x.shape[0];
  return window % 2 == 0 ? rows_before_experts(args.offsets, rows, window / 2)
                         : rows_after_experts(args.offsets, rows, window / 2);
}

GLM5_INLINE Area area_of(const DequantizeFp8Args& args, i64 item) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const i64 width = args.group == Fp8Group::column ? kColumnCols : kTileCols;
  const i64 strips = ceil_div(cols, width), piece = item / strips;
  const i64 col_begin = item % strips * width, col_end = smaller(col_begin + width, cols);
  if (args.group == Fp8Group::column) {
    const i64 groups = args.scales.shape[1];
    const RowRange range =
        piece < groups ? rows_of_group(args.offsets, rows, piece) : rows_without_expert(args, piece - groups);
    return {range.begin, range.end, col_begin, col_end, piece < groups ? piece : -1};
  }
  return {piece * kTileRows, smaller((piece + 1) * kTileRows, rows), col_begin, col_end, 0};
}

// The scale of x[row, col], where the area's group is known.
GLM5_INLINE f32 scale_at(const DequantizeFp8Args& args, const Area& area, i64 row, i64 col) {
  switch (args.group) {
    case Fp8Group::row: return *args.scales.at(row, col / kFp8Group);
    case Fp8Group::block: return *args.scales.at(row / kFp8Group, col / kFp8Group);
    case Fp8Group::column: return area.group < 0 ? 0 : *args.scales.at(col, area.group);
  }
  return 0;
}

}  // namespace glm5::dequantize
