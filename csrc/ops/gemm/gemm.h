// gemm: out[p, i, j] = sum over k of a[p, i, k] * b[p, j, k], for bf16 or f32 operands, accumulated in f32.
//
// The summation trees, the same for every m, n, batch, tile, schedule and thread count:
//   bf16 on CPU: total = sum of steps of 32 k, ascending from zero; a step is (even + odd), chains of fused
//                multiply-adds over its even and odd k. This is AMX's TDPBF16PS, which every instruction set follows
//                to the bit; as there, subnormal numbers count as zero.
//   bf16 on sm_90a: wgmma of 16 k, ascending, in one accumulator.
//   f32 everywhere: total = sum of parts of 128 k, ascending from zero; a part is a chain of fused multiply-adds over
//                its k, ascending from zero. CPU and CUDA give the same bits.
//   out = round(total), or round(out + total) when accumulating. k is padded with zeros.
#pragma once

#include "core/gemm_args.h"

namespace glm5 {

// Scratch of one call on the CPU; the CUDA kernels need none.
i64 gemm_workspace_bytes(i64 batch, i64 m, i64 n, i64 k);

void gemm_cpu(const GemmArgs&);
void gemm_cuda(const GemmArgs&, void* stream);

}  // namespace glm5
