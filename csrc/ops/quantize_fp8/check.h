// The limits of quantize_fp8 that types and ranks do not show; for the doors of the op, before a kernel runs.
#pragma once

#include "core/error.h"
#include "core/fp8_groups.h"
#include "ops/quantize_fp8/quantize_fp8.h"

namespace glm5::quantize {

// A floor of this or more keeps every scale normal, and its reciprocal finite.
constexpr f32 kSmallestFloor = 0x1p-117f;

inline void check(const QuantizeFp8Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const bool by_column = args.group == Fp8Group::column;
  const i64 outer = by_column ? cols : rows, inner = by_column ? rows : cols;
  require(args.x.stride[1] == 1 || cols <= 1, "quantize_fp8: x must have unit stride along cols, got ", args.x.stride[1]);
  require(args.amax_floor >= kSmallestFloor && is_finite(args.amax_floor),
          "quantize_fp8: amax_floor must be finite and at least 2^-117 (6.1e-36), got ", args.amax_floor);
  require(args.values.shape[0] == outer && args.values.shape[1] == inner, "quantize_fp8: values must be [", outer, ", ",
          inner, "], got [", args.values.shape[0], ", ", args.values.shape[1], "]");
  require(args.values.stride[1] == 1 || inner <= 1, "quantize_fp8: values must be row-major");
  require(!args.offsets.exists() || by_column, "quantize_fp8: offsets are for groups 128x1 only");
  require(!args.offsets.exists() || args.offsets.shape[0] >= 1, "quantize_fp8: offsets must be i32[experts + 1], got none");
  const i64 groups = by_column ? fp8_groups_of_rows(args.offsets, rows) : ceil_div(cols, kFp8Group);
  const i64 scale_rows = by_column ? cols : args.group == Fp8Group::row ? rows : ceil_div(rows, kFp8Group);
  require(args.scales.shape[0] == scale_rows && args.scales.shape[1] >= groups &&
              (by_column || args.scales.shape[1] == groups),
          "quantize_fp8: scales must be [", scale_rows, ", ", groups, "], got [", args.scales.shape[0], ", ",
          args.scales.shape[1], "]");
}

}  // namespace glm5::quantize
