#include "core/bind.h"
#include "ops/grouped_gemm/grouped_gemm.h"
#include "ops/grouped_gemm/launch_sm90.h"

namespace nb = nanobind;

namespace glm5 {

void bind_grouped_gemm(nb::module_& m) {
  using bind::Argument;
  m.def(
      "grouped_gemm",
      [](Argument<IndexerTensor<2>> rows, Argument<Tensor<const f32, 2>> row_scales, Argument<IndexerTensor<3>> w,
         Argument<Tensor<const f32, 3>> w_scales, Argument<Tensor<const i32, 1>> offsets, i64 max_rows,
         Argument<Tensor<const i32, 1>> row_tokens, bool accumulate, bool clear_rest, Argument<FloatTensor<2>> out,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const GroupedGemmArgs args{rows.tensor,    row_scales.tensor, w.tensor,          w_scales.tensor,
                                   offsets.tensor, max_rows,          row_tokens.tensor, accumulate,
                                   clear_rest,     out.tensor,        workspace.tensor};
        bind::run<grouped_gemm_cpu, grouped_gemm_cuda>(args, rows.on_cuda, stream);
      },
      nb::arg("rows"), nb::arg("row_scales").none(), nb::arg("w"), nb::arg("w_scales").none(), nb::arg("offsets"),
      nb::arg("max_rows"), nb::arg("row_tokens").none(), nb::arg("accumulate"), nb::arg("clear_rest"), nb::arg("out"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  // For tests: one given schedule of the CUDA kernel, whose results must not differ from the others' by a bit.
  m.def(
      "grouped_gemm_variant",
      [](Argument<IndexerTensor<2>> rows, Argument<Tensor<const f32, 2>> row_scales, Argument<IndexerTensor<3>> w,
         Argument<Tensor<const f32, 3>> w_scales, Argument<Tensor<const i32, 1>> offsets, Argument<FloatTensor<2>> out,
         int variant, u64 stream) {
        const GroupedGemmArgs args{
            rows.tensor, row_scales.tensor, w.tensor, w_scales.tensor, offsets.tensor, 0, {}, false,
            true,        out.tensor,        {}};
        bind::run_on_cuda<grouped_gemm_sm90::run_variant>(args, variant, reinterpret_cast<void*>(stream));
      },
      nb::arg("rows"), nb::arg("row_scales").none(), nb::arg("w"), nb::arg("w_scales").none(), nb::arg("offsets"),
      nb::arg("out"), nb::arg("variant"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.attr("grouped_gemm_variants") = grouped_gemm_sm90::kVariantCount;
  m.def(
      "grouped_gemm_wgrad",
      [](Argument<IndexerTensor<2>> a, Argument<Tensor<const f32, 2>> a_scales, Argument<IndexerTensor<2>> b,
         Argument<Tensor<const f32, 2>> b_scales, Argument<Tensor<const i32, 1>> offsets, bool accumulate,
         Argument<FloatTensor<3>> out, Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const GroupedWgradArgs args{a.tensor,       b.tensor,   a_scales.tensor, b_scales.tensor,
                                    offsets.tensor, accumulate, out.tensor,      workspace.tensor};
        bind::run<grouped_gemm_wgrad_cpu, grouped_gemm_wgrad_cuda>(args, a.on_cuda, stream);
      },
      nb::arg("a"), nb::arg("a_scales").none(), nb::arg("b"), nb::arg("b_scales").none(), nb::arg("offsets"),
      nb::arg("accumulate"), nb::arg("out"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("grouped_gemm_workspace_bytes", &grouped_gemm_workspace_bytes, nb::arg("experts"), nb::arg("rows"),
        nb::arg("n"), nb::arg("k"), nb::arg("gathers"));
  m.def("grouped_gemm_cuda_workspace_bytes", &grouped_gemm_cuda_workspace_bytes, nb::arg("experts"), nb::arg("rows"),
        nb::arg("n"), nb::arg("k"), nb::arg("gathers"));
  m.def("grouped_gemm_wgrad_workspace_bytes", &grouped_gemm_wgrad_workspace_bytes, nb::arg("experts"), nb::arg("rows"),
        nb::arg("n"), nb::arg("k"));
}

}  // namespace glm5
