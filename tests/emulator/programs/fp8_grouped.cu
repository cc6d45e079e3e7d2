// Several FP8 GEMMs of different sizes with block scales in one launch. The kernel changes its tensor maps when it
// comes to another group.
#include <vector>

#include "gemm.cuh"

struct Choice : program::Choice {
  using Input = cutlass::float_e4m3_t;
  using Tile = cute::Shape<cute::_128, cute::_128, cute::_128>;
  using Scales = cutlass::detail::Sm90BlockwiseScaleConfig<1, 128, 128>;
  using ScalesA = decltype(Scales::deduce_layoutSFA());
  using ScalesB = decltype(Scales::deduce_layoutSFB());
  using LayoutA = cute::tuple<cutlass::layout::RowMajor*, ScalesA*>;
  using LayoutB = cute::tuple<cutlass::layout::ColumnMajor*, ScalesB*>;
  using LayoutD = cutlass::layout::RowMajor*;
  using Mainloop = cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperativeFP8Blockwise;
  using Epilogue = cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative;
  using Scheduler = void;
  using Shape = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;
};

using Gemm = program::Built<Choice>::Gemm;
using Kernel = program::Built<Choice>::Kernel;

// A vector's copy in device memory, freed with it.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& values) {
    if (cudaMalloc(&data_, values.size() * sizeof(T)) != cudaSuccess) return;
    cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~OnDevice() { cudaFree(data_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

extern "C" const char* run_problems(const Problem* problems, int groups) {
  using Input = Choice::Input;
  std::vector<Choice::Shape::UnderlyingProblemShape> shapes;
  std::vector<const Input*> a, b;
  std::vector<const float*> a_scales, b_scales;
  std::vector<float*> d;
  std::vector<typename Kernel::InternalStrideA> a_strides;
  std::vector<typename Kernel::InternalStrideB> b_strides;
  std::vector<typename Kernel::InternalStrideD> d_strides;
  std::vector<Choice::ScalesA> a_layouts;
  std::vector<Choice::ScalesB> b_layouts;
  for (const Problem* p = problems; p != problems + groups; ++p) {
    shapes.push_back({p->m, p->n, p->k});
    a.push_back(static_cast<const Input*>(p->a));
    b.push_back(static_cast<const Input*>(p->b));
    a_scales.push_back(p->a_scales);
    b_scales.push_back(p->b_scales);
    d.push_back(static_cast<float*>(p->d));
    a_strides.push_back(program::packed<typename Kernel::InternalStrideA>(p->m, p->k));
    b_strides.push_back(program::packed<typename Kernel::InternalStrideB>(p->n, p->k));
    d_strides.push_back(program::packed<typename Kernel::InternalStrideD>(p->m, p->n));
    const auto shape = cute::make_shape(p->m, p->n, p->k, 1);
    a_layouts.push_back(Choice::Scales::tile_atom_to_shape_SFA(shape));
    b_layouts.push_back(Choice::Scales::tile_atom_to_shape_SFB(shape));
  }
  const OnDevice shapes_there(shapes);
  const OnDevice a_there(a), b_there(b);
  const OnDevice a_scales_there(a_scales), b_scales_there(b_scales);
  const OnDevice d_there(d);
  const OnDevice a_strides_there(a_strides);
  const OnDevice b_strides_there(b_strides);
  const OnDevice d_strides_there(d_strides);
  const OnDevice a_layouts_there(a_layouts);
  const OnDevice b_layouts_there(b_layouts);
  Gemm::Arguments arguments;
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {groups, shapes_there.get(), shapes.data()};
  arguments.mainloop.ptr_A = a_there.get();
  arguments.mainloop.dA = a_strides_there.get();
  arguments.mainloop.ptr_B = b_there.get();
  arguments.mainloop.dB = b_strides_there.get();
  arguments.mainloop.ptr_SFA = a_scales_there.get();
  arguments.mainloop.layout_SFA = a_layouts_there.get();
  arguments.mainloop.ptr_SFB = b_scales_there.get();
  arguments.mainloop.layout_SFB = b_layouts_there.get();
  arguments.epilogue.thread.alpha = 1;
  arguments.epilogue.thread.beta = 0;
  arguments.epilogue.ptr_D = d_there.get();
  arguments.epilogue.dD = d_strides_there.get();
  return program::run<Gemm>(arguments, problems->multiprocessors);
}
