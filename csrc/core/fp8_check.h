// The limits of quantize_fp8 and dequantize_fp8 that types and ranks do not show; for their doors, before a kernel
// runs.
#pragma once

#include "core/error.h"
#include "core/fp8.h"
#include "core/fp8_groups.h"

namespace glm5 {

// Args has x, values, scales, group and offsets.
template <class Args>
void check_fp8_shapes(const char* op, const Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const bool by_column = args.group == Fp8Group::column;
  const i64 outer = by_column ? cols : rows, inner = by_column ? rows : cols;
  require(args.x.stride[1] == 1 || cols <= 1, op, ": x must have unit stride along cols, got ", args.x.stride[1]);
  require(args.values.shape[0] == outer && args.values.shape[1] == inner, op, ": values must be [", outer, ", ", inner,
          "], got [", args.values.shape[0], ", ", args.values.shape[1], "]");
  require(args.values.stride[1] == 1 || inner <= 1, op, ": values must have unit stride along the last dimension, got ",
          args.values.stride[1]);
  require(!args.offsets.exists() || by_column, op, ": offsets are for groups 128x1 only");
  require(!args.offsets.exists() || args.offsets.shape[0] >= 1, op, ": offsets must be i32[experts + 1], got none");
  const i64 scale_rows = by_column ? cols : args.group == Fp8Group::row ? rows : ceil_div(rows, kFp8Group);
  const i64 groups = by_column ? fp8_groups_of_rows(args.offsets, rows) : ceil_div(cols, kFp8Group);
  // More groups than needed are no fault with 128x1: they are the ones that no row falls into.
  require(args.scales.shape[0] == scale_rows && (args.scales.shape[1] == groups ||
                                                 (by_column && args.scales.shape[1] > groups)),
          op, ": scales must be [", scale_rows, ", ", groups, by_column ? " or more" : "", "], got [",
          args.scales.shape[0], ", ", args.scales.shape[1], "]");
}

// With this floor or a greater one every scale is a normal number, and so is its reciprocal.
constexpr f32 kSmallestAmaxFloor = 0x1p-117f;

inline void check_amax_floor(f32 amax_floor) {
  require(is_finite(amax_floor) && amax_floor >= kSmallestAmaxFloor,
          "quantize_fp8: amax_floor must be finite and at least 2^-117 (6.1e-36), got ", amax_floor);
}

// Offsets in host memory.
inline void check_fp8_offsets(const char* op, const Tensor<const i32, 1>& offsets, i64 rows) {
  i64 before = 0;
  for (i64 e = 0; e < offsets.shape[0]; ++e) {
    const i64 offset = *offsets.at(e);
    require(offset >= before && offset <= rows, op, ": offsets must ascend within 0 .. ", rows, "; offsets[", e,
            "] is ", offset, " after ", before);
    before = offset;
  }
}

}  // namespace glm5
