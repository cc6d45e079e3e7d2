// s8 x s8 in s32: the integer form of wgmma.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Input = int8_t;
  using Sum = int32_t;
  using Output = int32_t;
  using Tile = cute::Shape<cute::_128, cute::_64, cute::_128>;
};

extern "C" const char* run_problem(const Problem* problem) { return program::run_plain<Choice>(*problem); }
