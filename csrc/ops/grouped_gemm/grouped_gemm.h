// grouped_gemm: out[r] = rows[r] @ w[e]^T for every row r of expert e, and its weight's gradient
// grouped_gemm_wgrad: out[e] = a[:, of e] @ b[:, of e]^T, a sum over the rows of expert e.
//
// Expert e owns the rows offsets[e] .. offsets[e+1], or, where max_rows > 0 (the masked layout), counts[e] rows from
// e * max_rows on. An expert may own none. Rows that no expert owns are never read; of out they become zeros where
// clear_rest says so, and else stay as they are.
//
// The bits are those of gemm (bf16 with bf16) and fp8_gemm (e4m3 with e4m3) on the rows of one expert; the summation
// trees stand there (ops/gemm/gemm.h, ops/fp8_gemm/fp8_gemm.h). What other rows and experts there are does not matter.
// bf16 rows with e4m3 weights, on the CPU alone, take fp8_gemm's tree with 1 as the scale of a row; as in gemm,
// subnormal numbers count as zero, and bf16 of 2^120 or more as infinite.
//
// Offsets in host memory must ascend within the rows. On a GPU they are only read by the kernel: an offset counts as
// held within the rows and not below the ones before it.
#pragma once

#include "core/indexer.h"  // IndexerTensor: e4m3 or bf16

namespace glm5 {

struct GroupedGemmArgs {
  IndexerTensor<2> rows;            // bf16 or e4m3 [rows of x, k], unit stride along k
  Tensor<const f32, 2> row_scales;  // with e4m3: [rows of x, ceil(k/128)] column-major, stride a multiple of 4
  IndexerTensor<3> w;               // bf16 [experts, n, k], unit stride along n or k; or e4m3, along k
  Tensor<const f32, 3> w_scales;    // with e4m3: [experts, ceil(n/128), ceil(k/128)], any strides
  Tensor<const i32, 1> offsets;     // [experts + 1], or [experts] counts
  i64 max_rows;                     // 0, or that of the masked layout
  Tensor<const i32, 1> row_tokens;  // optional, [rows of out]: row r is row row_tokens[r] of x
  bool accumulate, clear_rest;
  FloatTensor<2> out;       // bf16 or f32 [rows, n], unit stride along n
  Tensor<u8, 1> workspace;  // grouped_gemm_workspace_bytes()

  GLM5_INLINE i64 experts() const { return w.shape[0]; }
};

struct GroupedWgradArgs {
  IndexerTensor<2> a, b;                    // both bf16, unit stride along either; or both e4m3, unit stride along rows
  Tensor<const f32, 2> a_scales, b_scales;  // with e4m3: [n or k, groups] column-major; groups as in core/fp8_groups.h
  Tensor<const i32, 1> offsets;             // [experts + 1]
  bool accumulate;
  FloatTensor<3> out;       // bf16 or f32 [experts, n, k], unit stride along k
  Tensor<u8, 1> workspace;  // grouped_gemm_wgrad_workspace_bytes()
};

// Scratch of one call on a GPU: where rows are gathered, they and their scales.
constexpr i64 grouped_gemm_cuda_workspace_bytes(i64, i64 rows, i64, i64 k, bool gathers) {
  return gathers ? round_up(rows * k * 2, 128) + round_up(rows, kScaleRowsPad) * ceil_div(k, kFp8Group) * 4 : 0;
}
// Scratch of one call on the CPU.
i64 grouped_gemm_workspace_bytes(i64 experts, i64 rows, i64 n, i64 k, bool gathers);
i64 grouped_gemm_wgrad_workspace_bytes(i64 experts, i64 rows, i64 n, i64 k);

void grouped_gemm_cpu(const GroupedGemmArgs&);
void grouped_gemm_cuda(const GroupedGemmArgs&, void* stream);
void grouped_gemm_wgrad_cpu(const GroupedWgradArgs&);
void grouped_gemm_wgrad_cuda(const GroupedWgradArgs&, void* stream);

}  // namespace glm5
