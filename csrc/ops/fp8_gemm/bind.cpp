#include "ops/fp8_gemm/fp8_gemm.h"

#include "core/bind.h"
#include "ops/fp8_gemm/config.h"
#include "ops/fp8_gemm/launch_sm90.h"

namespace nb = nanobind;

namespace glm5 {

void bind_fp8_gemm(nb::module_& m) {
  using bind::Argument;
  m.def(
      "fp8_gemm",
      [](Argument<Tensor<const e4m3, 2>> a, Argument<Tensor<const f32, 2>> a_scales, Argument<Tensor<const e4m3, 2>> b,
         Argument<Tensor<const f32, 2>> b_scales, bool b_scales_per_row, Argument<FloatTensor<2>> out, bool accumulate,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const Fp8GemmArgs args{a.tensor,   a_scales.tensor, b.tensor,        b_scales.tensor, b_scales_per_row,
                               accumulate, out.tensor,      workspace.tensor};
        bind::run<fp8_gemm_cpu, fp8_gemm_cuda>(args, a.on_cuda, stream);
      },
      nb::arg("a"), nb::arg("a_scales"), nb::arg("b"), nb::arg("b_scales"), nb::arg("b_scales_per_row"), nb::arg("out"),
      nb::arg("accumulate"), nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  // For tests: one given schedule of the CUDA kernel, whose results must not differ from the others' by a bit.
  m.def(
      "fp8_gemm_variant",
      [](Argument<Tensor<const e4m3, 2>> a, Argument<Tensor<const f32, 2>> a_scales, Argument<Tensor<const e4m3, 2>> b,
         Argument<Tensor<const f32, 2>> b_scales, bool b_scales_per_row, Argument<FloatTensor<2>> out, bool accumulate,
         int variant, u64 stream) {
        const Fp8GemmArgs args{a.tensor,   a_scales.tensor, b.tensor, b_scales.tensor, b_scales_per_row,
                               accumulate, out.tensor,      {}};
        bind::run_on_cuda<fp8_gemm_sm90::run_variant>(args, variant, reinterpret_cast<void*>(stream));
      },
      nb::arg("a"), nb::arg("a_scales"), nb::arg("b"), nb::arg("b_scales"), nb::arg("b_scales_per_row"), nb::arg("out"),
      nb::arg("accumulate"), nb::arg("variant"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.attr("fp8_gemm_variants") = fp8_gemm_sm90::kVariantCount;
  m.def(
      "fp8_gemm_config",
      [](i64 m, i64 n, i64 k, bool b_scales_per_row, int sms) {
        return describe(fp8_gemm_sm90::choose_config(m, n, k, b_scales_per_row, sms));
      },
      nb::arg("m"), nb::arg("n"), nb::arg("k"), nb::arg("b_scales_per_row") = false, nb::arg("sms") = 132);
  m.def("fp8_gemm_workspace_bytes", &fp8_gemm_workspace_bytes, nb::arg("m"), nb::arg("n"), nb::arg("k"));
}

}  // namespace glm5
