#include "ops/gemm/gemm.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_gemm(nb::module_& m) {
  using bind::Argument;
  m.def(
      "gemm",
      [](Argument<FloatTensor<3>> a, Argument<FloatTensor<3>> b, Argument<FloatTensor<3>> out, bool accumulate,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const GemmArgs args{a.tensor, b.tensor, accumulate, out.tensor, workspace.tensor};
        bind::run<gemm_cpu, gemm_cuda>(args, a.on_cuda, stream);
      },
      nb::arg("a"), nb::arg("b"), nb::arg("out"), nb::arg("accumulate"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("gemm_workspace_bytes", &gemm_workspace_bytes, nb::arg("m"), nb::arg("n"), nb::arg("k"));
}

}  // namespace glm5
