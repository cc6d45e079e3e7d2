// Two blocks of a cluster, one above the other, share the tiles of b: each loads half and multicasts it. b is stored
// [k, n], so that it is read MN-major.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  using LayoutB = cutlass::layout::RowMajor;
};

extern "C" const char* run_problem(const Problem* problem) { return program::run_plain<Choice>(*problem); }
