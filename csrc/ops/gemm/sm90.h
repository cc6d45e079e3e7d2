// gemm on a GPU with f32 operands; gemm_cuda hands them over.
#pragma once

#include <cuda_runtime.h>

#include "ops/gemm/gemm.h"

namespace glm5 {

void gemm_f32_cuda(const GemmArgs&, cudaStream_t);

}  // namespace glm5
