// Stream-K: blocks share tiles by splitting k, and add up their parts in a fixed order through flags in global memory.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Scheduler = cutlass::gemm::StreamKScheduler;
};

extern "C" const char* run_problem(const Problem* problem) {
  auto arguments = program::plain_arguments<Choice>(*problem);
  if (problem->splits > 0) {
    arguments.scheduler.decomposition_mode =
        cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams::DecompositionMode::SplitK;
    arguments.scheduler.splits = problem->splits;
  } else {
    arguments.scheduler.decomposition_mode =
        cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90StreamKParams::DecompositionMode::StreamK;
  }
  return program::run<typename program::Built<Choice>::Gemm>(arguments, problem->multiprocessors);
}
