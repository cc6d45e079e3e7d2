// What the CPU kernels of quantize_fp8 share, whatever the instruction set.
#pragma once

#include "cpu/fp8_areas.h"
#include "ops/quantize_fp8/quantize_fp8.h"

namespace glm5::quantize {

// 1x128: the scales of 16 rows fill a cache line of the column-major scales; 32 groups of a row stream well.
// 128x128: four blocks side by side read 1 KiB (bf16) of a row at a time, and 128 KiB stay in a second-level cache.
// 128x1: 256 B of a row at a time; the areas of the same columns follow each other, so that few pages are written at a
// time.
constexpr cpu::Fp8Tiling kTiling{.row_height = 16,
                                 .row_width = 4096,
                                 .block_height = kFp8Group,
                                 .block_width = 512,
                                 .column_width = kFp8Group,
                                 .columns_go_down = true};

// 128x1 without anything to quantise: rows that no expert owns are zeros, a group without rows has scale 0.
GLM5_INLINE bool is_done(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
  if (area.group >= 0 && area.row_begin < area.row_end) return false;
  for (i64 col = area.col_begin; col < area.col_end; ++col) {
    if (area.group >= 0)
      *args.scales.at(col, area.group) = 0;
    else
      for (i64 row = area.row_begin; row < area.row_end; ++row) *args.values.at(col, row) = {0};
  }
  return true;
}

}  // namespace glm5::quantize
