#include "core/bind.h"
#include "ops/indexer_topk/indexer_topk.h"

namespace nb = nanobind;

namespace glm5 {

namespace {

using bind::Argument;
using Q = Argument<IndexerTensor<3>>;
using K = Argument<IndexerTensor<2>>;
using F32Matrix = Argument<Tensor<const f32, 2>>;
using I32Matrix = Argument<Tensor<const i32, 2>>;
using Indices = Argument<Tensor<i32, 2>>;
using Margins = Argument<Tensor<f32, 1>>;
using Fingerprints = Argument<Tensor<i64, 1>>;
using Workspace = Argument<Tensor<u8, 1>>;

void run(const IndexerTopkArgs& args, bool on_cuda, u64) {
  require(!on_cuda, "indexer_topk: this build has no CUDA kernels");
  indexer_topk_cpu(args);
}

}  // namespace

void bind_indexer_topk(nb::module_& m) {
  m.def(
      "indexer_topk",
      [](Q q, K k, F32Matrix weights, I32Matrix windows, Argument<Tensor<const f32, 1>> k_scales, Indices indices,
         Margins margins, Fingerprints fingerprints, Workspace workspace, u64 stream) {
        const IndexerTopkArgs args{
            {q.tensor, weights.tensor, windows.tensor, false, k.tensor, k_scales.tensor, {}, {}, {}},
            false,
            indices.tensor,
            margins.tensor,
            fingerprints.tensor,
            workspace.tensor};
        run(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(),
      nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_topk_paged",
      [](Q q, F32Matrix weights, Argument<Tensor<const u8, 2>> cache, I32Matrix block_table,
         Argument<Tensor<const i32, 1>> sequences, I32Matrix windows, bool physical, Indices indices, Margins margins,
         Fingerprints fingerprints, Workspace workspace, u64 stream) {
        const IndexerTopkArgs args{{q.tensor, weights.tensor, windows.tensor, true, {}, {}, cache.tensor,
                                    block_table.tensor, sequences.tensor},
                                   physical,
                                   indices.tensor,
                                   margins.tensor,
                                   fingerprints.tensor,
                                   workspace.tensor};
        run(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("physical"), nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def("indexer_topk_workspace_bytes", &indexer_topk_workspace_bytes, nb::arg("tokens"), nb::arg("keys"),
        nb::arg("heads"), nb::arg("dim"), nb::arg("topk"), nb::arg("margins"));
}

}  // namespace glm5
