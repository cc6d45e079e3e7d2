// e4m3 with a scale for each 1 x 128 of a and each 128 x 128 of b, applied between steps of 128 in k.
#include "gemm.cuh"

struct Choice : program::Choice {
  using Input = cutlass::float_e4m3_t;
  using Tile = cute::Shape<cute::_128, cute::_128, cute::_128>;
  using Scales = cutlass::detail::Sm90BlockwiseScaleConfig<1, 128, 128>;
  using LayoutA = cute::tuple<cutlass::layout::RowMajor, decltype(Scales::deduce_layoutSFA())>;
  using LayoutB = cute::tuple<cutlass::layout::ColumnMajor, decltype(Scales::deduce_layoutSFB())>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8Blockwise;
};

extern "C" const char* run_problem(const Problem* problem) {
  auto arguments = program::plain_arguments<Choice>(*problem);
  const auto shape = cute::make_shape(problem->m, problem->n, problem->k, 1);
  arguments.mainloop.ptr_SFA = problem->a_scales;
  arguments.mainloop.layout_SFA = Choice::Scales::tile_atom_to_shape_SFA(shape);
  arguments.mainloop.ptr_SFB = problem->b_scales;
  arguments.mainloop.layout_SFB = Choice::Scales::tile_atom_to_shape_SFB(shape);
  return program::run<typename program::Built<Choice>::Gemm>(arguments, problem->multiprocessors);
}
