// What the CPU kernels of dequantize_fp8 share, whatever the instruction set.
#pragma once

#include "cpu/fp8_areas.h"
#include "ops/dequantize_fp8/dequantize_fp8.h"

namespace glm5::dequantize {

// 1x128 and 128x128: rows and columns that stream. 128x1: a group high, 256 B (bf16) of a row wide; the areas of the
// same rows follow each other, so that few pages are written at a time.
constexpr cpu::Fp8Tiling kTiling{.row_height = 16,
                                 .row_width = 4096,
                                 .block_height = 16,
                                 .block_width = 4096,
                                 .column_width = kFp8Group,
                                 .columns_go_down = false};

// The scale of x[row, col], where the area's group is known.
GLM5_INLINE f32 scale_at(const DequantizeFp8Args& args, const cpu::Fp8Area& area, i64 row, i64 col) {
  switch (args.group) {
    case Fp8Group::row:
      return *args.scales.at(row, col / kFp8Group);
    case Fp8Group::block:
      return *args.scales.at(row / kFp8Group, col / kFp8Group);
    case Fp8Group::column:
      return area.group < 0 ? 0 : *args.scales.at(col, area.group);
  }
  return 0;
}

}  // namespace glm5::dequantize
