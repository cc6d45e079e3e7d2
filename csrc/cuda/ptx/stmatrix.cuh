// stmatrix: 8 x 8 matrices of 16-bit values from a warp's registers to shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#warp-level-matrix-instructions-stmatrix
#pragma once

#include "core/types.h"
#include "cuda/ptx/address.cuh"

namespace glm5::ptx {

// kCount matrices, transposed. Lane l gives the place of line l % 8 of matrix l / 8: 16 bytes, the matrix's column
// l % 8. It holds the columns 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
template <int kCount>
__device__ __forceinline__ void stmatrix_trans(void* line, const u32 (&matrices)[kCount]) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 4) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(smem_address(line)),
                 "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
                 : "memory");
  } else {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(smem_address(line)),
                 "r"(matrices[0]), "r"(matrices[1])
                 : "memory");
  }
}

}  // namespace glm5::ptx
