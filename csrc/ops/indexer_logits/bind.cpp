#include "core/bind.h"
#include "ops/indexer_logits/indexer_logits.h"

namespace nb = nanobind;

namespace glm5 {

void bind_indexer_logits(nb::module_& m) {
  using bind::Argument;
  m.def(
      "indexer_logits",
      [](Argument<IndexerTensor<3>> q, Argument<IndexerTensor<2>> k, Argument<Tensor<const f32, 2>> weights,
         Argument<Tensor<const i32, 2>> windows, Argument<Tensor<const f32, 1>> k_scales, Argument<Tensor<f32, 2>> out,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerOperands operands{q.tensor, weights.tensor, windows.tensor, false, k.tensor, k_scales.tensor,
                                       {},       {},             {}};
        bind::run<indexer_logits_cpu, indexer_logits_cuda>(IndexerLogitsArgs{operands, out.tensor, workspace.tensor},
                                                           q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(), nb::arg("out"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_paged",
      [](Argument<IndexerTensor<3>> q, Argument<Tensor<const f32, 2>> weights, Argument<Tensor<const u8, 2>> cache,
         Argument<Tensor<const i32, 2>> block_table, Argument<Tensor<const i32, 1>> sequences,
         Argument<Tensor<const i32, 2>> windows, Argument<Tensor<f32, 2>> out, Argument<Tensor<u8, 1>> workspace,
         u64 stream) {
        const IndexerOperands operands{q.tensor, weights.tensor, windows.tensor,     true,           {}, {},
                                       cache.tensor, block_table.tensor, sequences.tensor};
        bind::run<indexer_logits_cpu, indexer_logits_cuda>(IndexerLogitsArgs{operands, out.tensor, workspace.tensor},
                                                           q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("out"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_bwd",
      [](Argument<IndexerTensor<3>> q, Argument<IndexerTensor<2>> k, Argument<Tensor<const f32, 2>> weights,
         Argument<Tensor<const i32, 2>> windows, Argument<Tensor<const f32, 1>> k_scales,
         Argument<Tensor<const f32, 2>> d_out, bool only_weights, Argument<Tensor<bf16, 3>> d_q,
         Argument<Tensor<bf16, 2>> d_k, Argument<Tensor<f32, 2>> d_weights, Argument<Tensor<u8, 1>> workspace) {
        const IndexerOperands operands{q.tensor, weights.tensor, windows.tensor, false, k.tensor, k_scales.tensor,
                                       {},       {},             {}};
        require(!q.on_cuda, "indexer_logits: the gradient runs on the CPU only");
        indexer_logits_bwd_cpu({operands, d_out.tensor, only_weights, d_q.tensor, d_k.tensor, d_weights.tensor,
                                workspace.tensor});
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(), nb::arg("d_out"),
      nb::arg("only_weights"), nb::arg("d_q"), nb::arg("d_k"), nb::arg("d_weights"), nb::arg("workspace"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("indexer_logits_bwd_workspace_bytes", &indexer_logits_bwd_workspace_bytes, nb::arg("heads"), nb::arg("dim"));
  m.def("indexer_logits_workspace_bytes", &indexer_logits_workspace_bytes, nb::arg("heads"), nb::arg("dim"));
}

}  // namespace glm5
