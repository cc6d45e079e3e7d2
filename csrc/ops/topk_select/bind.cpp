#include "ops/topk_select/topk_select.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_topk_select(nb::module_& m) {
  using bind::Argument;
  m.def(
      "topk_select",
      [](Argument<Tensor<const f32, 2>> scores, Argument<Tensor<const i32, 2>> windows,
         Argument<Tensor<const i32, 2>> block_table, Argument<Tensor<const i32, 1>> sequences,
         Argument<Tensor<i32, 2>> indices, Argument<Tensor<f32, 1>> margins, Argument<Tensor<i64, 1>> fingerprints,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const TopkSelectArgs args{scores.tensor,  windows.tensor, block_table.tensor,  sequences.tensor,
                                  indices.tensor, margins.tensor, fingerprints.tensor, workspace.tensor};
        bind::run<topk_select_cpu, topk_select_cuda>(args, scores.on_cuda, stream);
      },
      nb::arg("scores"), nb::arg("windows").none(), nb::arg("block_table").none(), nb::arg("sequences").none(),
      nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("topk_select_workspace_bytes", &topk_select_workspace_bytes, nb::arg("rows"), nb::arg("keys"), nb::arg("topk"),
        nb::arg("margins"));
}

}  // namespace glm5
