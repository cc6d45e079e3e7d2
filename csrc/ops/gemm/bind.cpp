#include "ops/gemm/gemm.h"

#include "core/bind.h"
#include "ops/gemm/config.h"
#include "ops/gemm/launch_sm90.h"

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
  // For tests: one given schedule of the CUDA kernel, whose results must not differ from the others' by a bit.
  m.def(
      "gemm_variant",
      [](Argument<FloatTensor<3>> a, Argument<FloatTensor<3>> b, Argument<FloatTensor<3>> out, bool accumulate,
         int variant, u64 stream) {
        const GemmArgs args{a.tensor, b.tensor, accumulate, out.tensor, {}};
        bind::run_on_cuda<gemm_sm90::run_variant>(args, variant, reinterpret_cast<void*>(stream));
      },
      nb::arg("a"), nb::arg("b"), nb::arg("out"), nb::arg("accumulate"), nb::arg("variant"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.attr("gemm_variants") = gemm_sm90::kVariantCount;
  m.def(
      "gemm_config",
      [](i64 m, i64 n, i64 k, i64 batch, int sms) {
        return describe(gemm_sm90::choose_config(m, n, k, batch, {}, sms));
      },
      nb::arg("m"), nb::arg("n"), nb::arg("k"), nb::arg("batch") = 1, nb::arg("sms") = 132);
  m.def("gemm_workspace_bytes", &gemm_workspace_bytes, nb::arg("batch"), nb::arg("m"), nb::arg("n"), nb::arg("k"));
}

}  // namespace glm5
