// The seams between the files of grouped_gemm on sm_90a. Without CUDA: bind.cpp may include it.
#pragma once

#include "ops/grouped_gemm/config.h"
#include "ops/grouped_gemm/grouped_gemm.h"

namespace glm5::cuda {
struct Device;
}

namespace glm5::grouped_gemm_sm90 {

constexpr const char* kOp = "grouped_gemm";

// By one given variant, for tests that compare their bits.
void run_variant(const GroupedGemmArgs& args, int variant, void* stream);

// Where the rows lie in the order of out.
void launch_plain(const GroupedGemmArgs& args, int variant, const cuda::Device& device, void* stream);
void launch_fp8(const GroupedGemmArgs& args, int variant, const cuda::Device& device, void* stream);

// The same call with its rows, and their scales, brought into that order in the workspace.
GroupedGemmArgs gather(const GroupedGemmArgs& args, const cuda::Device& device, void* stream);

}  // namespace glm5::grouped_gemm_sm90
