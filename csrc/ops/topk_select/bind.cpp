#include "ops/topk_select/topk_select.h"

#include "core/bind.h"
#include "ops/topk_select/config.h"
#include "ops/topk_select/sm90.h"

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
  // For tests: one given schedule of the CUDA kernel, whose results must not differ from the others' by a bit.
  m.def(
      "topk_select_variant",
      [](Argument<Tensor<const f32, 2>> scores, Argument<Tensor<const i32, 2>> windows, Argument<Tensor<i32, 2>> indices,
         Argument<Tensor<f32, 1>> margins, Argument<Tensor<i64, 1>> fingerprints, int cluster, int staged_bytes,
         u64 stream) {
        const TopkSelectArgs args{scores.tensor,  windows.tensor, {}, {}, indices.tensor, margins.tensor,
                                  fingerprints.tensor, {}};
        bind::run_on_cuda<topk_select_sm90::run_variant>(args, cluster, staged_bytes, reinterpret_cast<void*>(stream));
      },
      nb::arg("scores"), nb::arg("windows").none(), nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"),
      nb::arg("cluster"), nb::arg("staged_bytes"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "topk_select_config",
      [](i64 rows, i64 keys, i64 topk, int sms) {
        return describe(topk_select_sm90::choose_config(rows, keys, topk, sms));
      },
      nb::arg("rows"), nb::arg("keys"), nb::arg("topk"), nb::arg("sms") = 132);
  m.def("topk_select_workspace_bytes", &topk_select_workspace_bytes, nb::arg("rows"), nb::arg("keys"), nb::arg("topk"),
        nb::arg("margins"));
}

}  // namespace glm5
