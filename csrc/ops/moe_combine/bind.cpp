#include "core/bind.h"
#include "ops/moe_combine/moe_combine.h"

namespace nb = nanobind;

namespace glm5 {

void bind_moe_combine(nb::module_& m) {
  using bind::Argument;
  m.def("moe_combine_bwd_workspace_bytes", &moe_combine_bwd_workspace_bytes);
  m.def("moe_combine_bwd_cuda_workspace_bytes", &moe_combine_bwd_workspace_bytes);
  m.def(
      "moe_combine",
      [](Argument<Tensor<const bf16, 2>> rows, Argument<Tensor<const i32, 2>> slots,
         Argument<Tensor<const f32, 2>> weights, Argument<Tensor<const bf16, 2>> shared, Argument<Tensor<bf16, 2>> out,
         u64 stream) {
        const MoeCombineArgs args{{rows.tensor, slots.tensor, weights.tensor}, shared.tensor, out.tensor};
        bind::run<moe_combine_cpu, moe_combine_cuda>(args, rows.on_cuda, stream);
      },
      nb::arg("rows"), nb::arg("slots"), nb::arg("weights").none(), nb::arg("shared").none(), nb::arg("out"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "moe_combine_bwd",
      [](Argument<Tensor<const bf16, 2>> d_out, Argument<Tensor<const bf16, 2>> rows,
         Argument<Tensor<const i32, 2>> slots, Argument<Tensor<const f32, 2>> weights, Argument<Tensor<bf16, 2>> d_rows,
         Argument<Tensor<f32, 2>> d_weights, Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const MoeCombineBwdArgs args{{rows.tensor, slots.tensor, weights.tensor}, d_out.tensor, d_rows.tensor,
                                     d_weights.tensor, workspace.tensor};
        bind::run<moe_combine_bwd_cpu, moe_combine_bwd_cuda>(args, rows.on_cuda, stream);
      },
      nb::arg("d_out"), nb::arg("rows"), nb::arg("slots"), nb::arg("weights").none(), nb::arg("d_rows"),
      nb::arg("d_weights").none(), nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
