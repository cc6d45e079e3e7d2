#include "core/bind.h"
#include "ops/indexer_logits_at/indexer_logits_at.h"

namespace nb = nanobind;

namespace glm5 {

namespace {

using bind::Argument;

IndexerOperands operands_of(const Argument<IndexerTensor<3>>& q, const Argument<IndexerTensor<2>>& k,
                            const Argument<Tensor<const f32, 2>>& weights,
                            const Argument<Tensor<const f32, 1>>& k_scales) {
  return {q.tensor, weights.tensor, {}, false, k.tensor, k_scales.tensor, {}, {}, {}};
}

}  // namespace

void bind_indexer_logits_at(nb::module_& m) {
  m.def(
      "indexer_logits_at",
      [](Argument<IndexerTensor<3>> q, Argument<IndexerTensor<2>> k, Argument<Tensor<const f32, 2>> weights,
         Argument<Tensor<const i32, 2>> indices, Argument<Tensor<const f32, 1>> k_scales, Argument<Tensor<f32, 2>> out,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerLogitsAtArgs args{operands_of(q, k, weights, k_scales), indices.tensor, out.tensor,
                                       workspace.tensor};
        bind::run<indexer_logits_at_cpu, indexer_logits_at_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("indices"), nb::arg("k_scales").none(), nb::arg("out"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_at_bwd",
      [](Argument<Tensor<const f32, 2>> d_out, Argument<IndexerTensor<3>> q, Argument<IndexerTensor<2>> k,
         Argument<Tensor<const f32, 2>> weights, Argument<Tensor<const i32, 2>> indices,
         Argument<Tensor<const f32, 1>> k_scales, Argument<Tensor<bf16, 3>> d_q, Argument<Tensor<bf16, 2>> d_k,
         Argument<Tensor<f32, 2>> d_weights, Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerLogitsAtBwdArgs args{operands_of(q, k, weights, k_scales),
                                          indices.tensor,
                                          d_out.tensor,
                                          d_q.tensor,
                                          d_k.tensor,
                                          d_weights.tensor,
                                          workspace.tensor};
        bind::run<indexer_logits_at_bwd_cpu, indexer_logits_at_bwd_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("d_out"), nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("indices"), nb::arg("k_scales").none(),
      nb::arg("d_q"), nb::arg("d_k"), nb::arg("d_weights"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("indexer_logits_at_workspace_bytes", &indexer_logits_at_workspace_bytes, nb::arg("heads"), nb::arg("dim"));
  m.def("indexer_logits_at_bwd_workspace_bytes", &indexer_logits_at_bwd_workspace_bytes, nb::arg("tokens"),
        nb::arg("topk"), nb::arg("keys"), nb::arg("heads"), nb::arg("dim"));
  m.def(
      "indexer_logits_at_bwd_cuda_workspace_bytes",
      [](i64, i64, i64 keys, i64, i64) { return indexer_logits_at_bwd_cuda_workspace_bytes(keys); }, nb::arg("tokens"),
      nb::arg("topk"), nb::arg("keys"), nb::arg("heads"), nb::arg("dim"));
}

}  // namespace glm5
