// CUTLASS GEMMs for sm_90a as C functions, which tests call with arrays in emulated memory.
//
// d [m, n] = a [m, k] b [n, k]^T, all row-major. Each program is one collective of CUTLASS's own builder, as it is.
#pragma once

#include <cuda_runtime_api.h>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/util/packed_stride.hpp>

struct Problem {
  const void *a, *b;
  const float *a_scales, *b_scales;  // of the programs that scale: [k / 128, m] and [k / 128, n / 128]
  void* d;
  int m, n, k;
  int multiprocessors;  // persistent kernels launch so many blocks
  int splits;           // of k, for stream-K; 0: it chooses
};

namespace program {

// What a program chooses. Derived ones replace members.
struct Choice {
  using Input = cutlass::bfloat16_t;
  using Sum = float;
  using Output = float;
  using Tile = cute::Shape<cute::_128, cute::_128, cute::_64>;
  using Cluster = cute::Shape<cute::_1, cute::_1, cute::_1>;
  using LayoutA = cutlass::layout::RowMajor;
  using LayoutB = cutlass::layout::ColumnMajor;
  using LayoutD = cutlass::layout::RowMajor;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Scheduler = cutlass::gemm::PersistentScheduler;
  using Shape = cute::Shape<int, int, int, int>;
};

template <class Choice>
struct Built {
  static constexpr int kInputs = 16 / sizeof(typename Choice::Input), kOutputs = 16 / sizeof(typename Choice::Output);
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename Choice::Tile, typename Choice::Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, typename Choice::Sum, typename Choice::Sum, void,
      typename Choice::LayoutD, kOutputs, typename Choice::Output, typename Choice::LayoutD, kOutputs,
      typename Choice::Epilogue>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, typename Choice::Input, typename Choice::LayoutA, kInputs,
      typename Choice::Input, typename Choice::LayoutB, kInputs, typename Choice::Sum, typename Choice::Tile,
      typename Choice::Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Choice::Mainloop>::CollectiveOp;
  using Kernel = cutlass::gemm::kernel::GemmUniversal<typename Choice::Shape, Mainloop, Epilogue,
                                                      typename Choice::Scheduler>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;
};

// null, or what CUTLASS or the runtime says.
template <class Gemm>
const char* run(typename Gemm::Arguments& arguments, int multiprocessors) {
  arguments.hw_info.sm_count = multiprocessors;
  if (const auto status = Gemm::can_implement(arguments); status != cutlass::Status::kSuccess) {
    return cutlassGetStatusString(status);
  }
  void* workspace = nullptr;
  const size_t bytes = Gemm::get_workspace_size(arguments);
  if (bytes > 0 && cudaMalloc(&workspace, bytes) != cudaSuccess) return "no workspace";
  Gemm gemm;
  auto status = gemm.initialize(arguments, workspace);
  if (status == cutlass::Status::kSuccess) status = gemm.run();
  cudaFree(workspace);
  return status == cutlass::Status::kSuccess ? nullptr : cutlassGetStatusString(status);
}

template <class Stride>
Stride packed(int rows, int columns) {
  return cutlass::make_cute_packed_stride(Stride{}, {rows, columns, 1});
}

// The arguments of a GEMM of one matrix without scales.
template <class Choice>
typename Built<Choice>::Gemm::Arguments plain_arguments(const Problem& p) {
  using Kernel = typename Built<Choice>::Kernel;
  typename Built<Choice>::Gemm::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {p.m, p.n, p.k, 1};
  arguments.mainloop.ptr_A = static_cast<const typename Choice::Input*>(p.a);
  arguments.mainloop.dA = packed<typename Kernel::StrideA>(p.m, p.k);
  arguments.mainloop.ptr_B = static_cast<const typename Choice::Input*>(p.b);
  arguments.mainloop.dB = packed<typename Kernel::StrideB>(p.n, p.k);
  arguments.epilogue.thread.alpha = 1;
  arguments.epilogue.thread.beta = 0;
  arguments.epilogue.ptr_D = static_cast<typename Choice::Output*>(p.d);
  arguments.epilogue.dD = packed<typename Kernel::StrideD>(p.m, p.n);
  return arguments;
}

template <class Choice>
const char* run_plain(const Problem& problem) {
  auto arguments = plain_arguments<Choice>(problem);
  return run<typename Built<Choice>::Gemm>(arguments, problem.multiprocessors);
}

}  // namespace program
