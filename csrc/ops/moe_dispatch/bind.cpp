#include "core/bind.h"
#include "ops/moe_dispatch/moe_dispatch.h"

namespace nb = nanobind;

namespace glm5 {

void bind_moe_dispatch(nb::module_& m) {
  using bind::Argument;
  m.def(
      "moe_dispatch",
      [](Argument<Tensor<const u8, 2>> x, Argument<Tensor<const f32, 2>> scales, Argument<Tensor<const i32, 2>> experts,
         i64 first_expert, Argument<Tensor<u8, 2>> rows, Argument<Tensor<f32, 2>> row_scales,
         Argument<Tensor<i32, 2>> slots, Argument<Tensor<i32, 1>> offsets, Argument<Tensor<i32, 1>> row_tokens,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const MoeDispatchArgs args{experts.tensor, first_expert,   x.tensor,          scales.tensor,     slots.tensor,
                                   offsets.tensor, row_tokens.tensor, rows.tensor, row_scales.tensor, workspace.tensor};
        bind::run<moe_dispatch_cpu, moe_dispatch_cuda>(args, experts.on_cuda, stream);
      },
      nb::arg("x").none(), nb::arg("scales").none(), nb::arg("experts"), nb::arg("first_expert"),
      nb::arg("rows").none(), nb::arg("row_scales").none(), nb::arg("slots"), nb::arg("offsets"),
      nb::arg("row_tokens"), nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "moe_dispatch_workspace_bytes", [](i64, i64) { return 0; }, nb::arg("assignments"), nb::arg("experts"));
  m.def(
      "moe_dispatch_cuda_workspace_bytes",
      [](i64 assignments, i64 experts) { return moe_dispatch_cuda_workspace_bytes(assignments, experts); },
      nb::arg("assignments"), nb::arg("experts"));
}

}  // namespace glm5
