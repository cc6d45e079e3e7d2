// Two consumer warpgroups take turns, each with a tile of 64 x 128 of its own.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Tile = cute::Shape<cute::_64, cute::_128, cute::_64>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};

extern "C" const char* run_problem(const Problem* problem) { return program::run_plain<Choice>(*problem); }
