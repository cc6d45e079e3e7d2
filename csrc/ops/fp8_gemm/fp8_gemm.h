// fp8_gemm: out[i, j] = sum over k of a[i, k] * a_scale * b[j, k] * b_scale, with a scale for every 128 of k.
//
// The summation tree, the same for every m, n, tile, schedule and thread count:
//   part(g)   = sum over the 128 k of group g of a * b, from zero, unscaled
//   total    <- fma(a_scales[i, g] * b_scales[j, g], part(g), total), g ascending from total = 0
//   out       = round(total), or round(out + total) when accumulating
// On CPU, with every instruction set, part(g) adds four steps of 32 k in ascending order; a step is (even + odd), where
// even and odd are chains of fused multiply-adds over its even and odd k. This is the arithmetic of AMX's TDPBF16PS,
// which the other instruction sets follow to the bit. k is padded with zeros.
// On sm_90a part(g) is four wgmma of 32 k; its inner order is the tensor core's own, and no schedule changes it.
#pragma once

#include "core/fp8.h"
#include "core/gemm_args.h"

namespace glm5 {

// Scratch of one call on the CPU; the CUDA kernels need none.
i64 fp8_gemm_workspace_bytes(i64 m, i64 n, i64 k);

void fp8_gemm_cpu(const Fp8GemmArgs&);
void fp8_gemm_cuda(const Fp8GemmArgs&, void* stream);

}  // namespace glm5
