// moe_dispatch: tokens into expert order, by a stable counting sort of (token, k) by experts[token, k].
//
//   slots[t, k]     the row of (t, k), or -1 where experts[t, k] is none of first_expert .. first_expert + count
//   offsets[e]      the first row of expert first_expert + e; offsets[count] is the number of rows in use
//   row_tokens[r]   the token of row r, or -1 from offsets[count] on
//   rows[r]         x[row_tokens[r]], bytes unchanged, with its scales; zeros from offsets[count] on
//
// tokens * topk rows are allocated, so that no size depends on the data. Within an expert rows come in order of tokens,
// then of k. Without x no rows move: the permutation is for a product that gathers.
#pragma once

#include "core/tensor.h"

namespace glm5 {

constexpr i64 kMostLocalExperts = 1024;

// On CUDA a block sorts a slab of assignments; where there are several, their counts stand in the workspace.
constexpr i64 kDispatchSlab = 2048;
GLM5_INLINE i64 moe_dispatch_cuda_workspace_bytes(i64 assignments, i64 experts) {
  const i64 slabs = ceil_div(assignments, kDispatchSlab);
  return slabs > 1 ? slabs * experts * 4 : 0;
}

struct MoeDispatchArgs {
  Tensor<const i32, 2> experts;      // [tokens, topk]
  i64 first_expert;
  Tensor<const u8, 2> x;             // [tokens, bytes of a row], or it does not exist: rows move as they stand
  Tensor<const f32, 2> scales;       // [tokens, groups] column-major, or it does not exist
  Tensor<i32, 2> slots;              // [tokens, topk]
  Tensor<i32, 1> offsets;            // [count + 1]
  Tensor<i32, 1> row_tokens;         // [tokens * topk]
  Tensor<u8, 2> rows;                // [tokens * topk, bytes of a row], with x
  Tensor<f32, 2> row_scales;         // [tokens * topk, groups] column-major, with scales
  Tensor<u8, 1> workspace;           // moe_dispatch_cuda_workspace_bytes on CUDA

  // An id among this call's experts, from 0, or -1.
  GLM5_INLINE i32 local(i32 id) const {
    const i64 expert = i64{id} - first_expert;
    return expert >= 0 && expert < offsets.shape[0] - 1 ? static_cast<i32>(expert) : -1;
  }
};

void moe_dispatch_cpu(const MoeDispatchArgs&);
void moe_dispatch_cuda(const MoeDispatchArgs&, void* stream);

}  // namespace glm5
