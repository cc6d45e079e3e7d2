// How the CPU kernels of quantize_fp8 and dequantize_fp8 cut their matrix: every item of work is one area with whole
// groups, and all instruction sets cut alike.
#pragma once

#include "core/fp8.h"
#include "core/fp8_groups.h"
#include "cpu/float_environment.h"

namespace glm5::cpu {

// The sizes of areas, by the kind of group; the areas of columns are as high as a group.
struct Fp8Tiling {
  i64 row_height, row_width;
  i64 block_height, block_width;
  i64 column_width;
  bool columns_go_down;  // the next area of columns is the one below, not the one to the right
};

struct Fp8Area {
  i64 row_begin, row_end;
  i64 col_begin, col_end;
  i64 group;  // 128x1: the group of these rows, or -1 where no expert owns them
};

// Args has x, scales, group and offsets.
template <class Args>
GLM5_INLINE i64 count_fp8_areas(const Args& args, const Fp8Tiling& tiling) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  if (args.group == Fp8Group::row) return ceil_div(rows, tiling.row_height) * ceil_div(cols, tiling.row_width);
  if (args.group == Fp8Group::block) return ceil_div(rows, tiling.block_height) * ceil_div(cols, tiling.block_width);
  // A window before and one after the experts' rows for every 128 rows; nearly all are empty.
  const i64 windows = args.offsets.exists() ? 2 * ceil_div(rows, kFp8Group) : 0;
  return (args.scales.shape[1] + windows) * ceil_div(cols, tiling.column_width);
}

template <class Args>
GLM5_INLINE Fp8Area fp8_area(const Args& args, const Fp8Tiling& tiling, i64 item) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const bool by_column = args.group == Fp8Group::column, by_row = args.group == Fp8Group::row;
  const i64 width = by_column ? tiling.column_width : by_row ? tiling.row_width : tiling.block_width;
  const i64 strips = ceil_div(cols, width);
  const bool goes_down = by_column && tiling.columns_go_down;
  const i64 pieces = goes_down ? count_fp8_areas(args, tiling) / strips : 1;
  const i64 piece = goes_down ? item % pieces : item / strips, strip = goes_down ? item / pieces : item % strips;
  const i64 col_begin = strip * width, col_end = smaller(col_begin + width, cols);
  if (!by_column) {
    const i64 height = by_row ? tiling.row_height : tiling.block_height;
    return {piece * height, smaller((piece + 1) * height, rows), col_begin, col_end, 0};
  }
  const i64 window = piece - args.scales.shape[1];
  const RowRange range = window < 0        ? rows_of_group(args.offsets, rows, piece)
                         : window % 2 == 0 ? rows_before_experts(args.offsets, rows, window / 2)
                                           : rows_after_experts(args.offsets, rows, window / 2);
  return {range.begin, range.end, col_begin, col_end, window < 0 ? piece : -1};
}

// Kernel::run<T>(args, area) for the areas [begin, end), where T is the type of x.
template <class Kernel, class Args>
GLM5_INLINE void run_fp8_areas(const Args& args, const Fp8Tiling& tiling, i64 begin, i64 end) {
  const FloatState before = use_default_floats();
  for (i64 item = begin; item < end; ++item) {
    const Fp8Area area = fp8_area(args, tiling, item);
    switch (args.x.dtype) {
      case Float::bf16:
        Kernel::template run<bf16>(args, area);
        break;
      case Float::f16:
        Kernel::template run<f16>(args, area);
        break;
      case Float::f32:
        Kernel::template run<f32>(args, area);
        break;
    }
  }
  restore_floats(before);
}

}  // namespace glm5::cpu
