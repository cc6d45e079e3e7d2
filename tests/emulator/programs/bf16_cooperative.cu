// Two consumer warpgroups share a tile of 128 x 128; the result leaves in bf16 through stmatrix and bulk stores.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Output = cutlass::bfloat16_t;
};

extern "C" const char* run_problem(const Problem* problem) { return program::run_plain<Choice>(*problem); }
