// moe_combine: out[t] = sum over k of weights[t, k] * rows[slots[t, k]], plus shared[t].
//
// The sum is a chain of fused multiply-adds in f32, k ascending from zero; then shared is added, then it is rounded
// once, to bf16. The same bits on every machine, whatever the other tokens are. A slot that is no row (negative, or as
// great as the number of rows) is absent: neither its row nor its weight is read. Without weights they are ones.
//
// The gradient:
//   d_rows[slots[t, k]] = bf16(weights[t, k] * d_out[t]), zeros for rows that no slot names
//   d_weights[t, k]     = d_out[t] . rows[slots[t, k]], 0 for absent slots. 64 chains of fused multiply-adds, of the
//                         columns that are equal modulo 64, ascending from zero; then chain c takes c + 32, c + 16,
//                         down to c + 1.
//
// A row has one slot. Where several name it, the CPU refuses the call; on a GPU the last of them gives d_rows.
#pragma once

#include "core/tensor.h"

namespace glm5 {

// What both passes read.
struct MoeCombineInputs {
  Tensor<const bf16, 2> rows;     // [rows, hidden], unit stride along hidden
  Tensor<const i32, 2> slots;     // [tokens, topk], row-major
  Tensor<const f32, 2> weights;   // [tokens, topk], row-major, or it does not exist

  GLM5_INLINE i64 tokens() const { return slots.shape[0]; }
  GLM5_INLINE i64 topk() const { return slots.shape[1]; }
  GLM5_INLINE i64 hidden() const { return rows.shape[1]; }
  // -1: absent.
  GLM5_INLINE i64 row_of(i64 token, i64 k) const {
    const i64 slot = *slots.at(token, k);
    return slot < rows.shape[0] ? larger(slot, -1) : -1;
  }
  GLM5_INLINE f32 weight_of(i64 token, i64 k) const { return weights.exists() ? *weights.at(token, k) : 1.0f; }
};

struct MoeCombineArgs {
  MoeCombineInputs inputs;
  Tensor<const bf16, 2> shared;  // [tokens, hidden], unit stride along hidden, or it does not exist
  Tensor<bf16, 2> out;           // [tokens, hidden], row-major
};

struct MoeCombineBwdArgs {
  MoeCombineInputs inputs;
  Tensor<const bf16, 2> d_out;   // [tokens, hidden], unit stride along hidden
  Tensor<bf16, 2> d_rows;        // [rows, hidden], row-major
  Tensor<f32, 2> d_weights;      // [tokens, topk], row-major, or it does not exist
  Tensor<u8, 1> workspace;       // moe_combine_bwd_workspace_bytes(), at a multiple of 4 bytes
};

constexpr i64 kCombineChains = 64;

// Whose each row is: token * topk + k, or -1.
GLM5_INLINE Tensor<i32, 1> owners_of(const MoeCombineBwdArgs& args) {
  return {reinterpret_cast<i32*>(args.workspace.data), {args.inputs.rows.shape[0]}, {1}};
}
GLM5_INLINE i64 moe_combine_bwd_workspace_bytes(i64 rows) { return 4 * rows; }

void moe_combine_cpu(const MoeCombineArgs&);
void moe_combine_cuda(const MoeCombineArgs&, void* stream);
void moe_combine_bwd_cpu(const MoeCombineBwdArgs&);
void moe_combine_bwd_cuda(const MoeCombineBwdArgs&, void* stream);

}  // namespace glm5
