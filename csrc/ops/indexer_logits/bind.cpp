#include "core/bind.h"
#include "ops/indexer_logits/indexer_logits.h"
#include "ops/indexer_logits/launch_sm90.h"

namespace nb = nanobind;

namespace glm5 {

namespace {

using bind::Argument;
using Q = Argument<IndexerTensor<3>>;
using K = Argument<IndexerTensor<2>>;
using F32Matrix = Argument<Tensor<const f32, 2>>;
using I32Matrix = Argument<Tensor<const i32, 2>>;

IndexerOperands dense(const Q& q, const K& k, const F32Matrix& weights, const I32Matrix& windows,
                      const Argument<Tensor<const f32, 1>>& k_scales) {
  return {q.tensor, weights.tensor, windows.tensor, false, k.tensor, k_scales.tensor, {}, {}, {}};
}

IndexerOperands paged(const Q& q, const F32Matrix& weights, const Argument<Tensor<const u8, 2>>& cache,
                      const I32Matrix& block_table, const Argument<Tensor<const i32, 1>>& sequences,
                      const I32Matrix& windows) {
  return {q.tensor, weights.tensor, windows.tensor, true, {}, {}, cache.tensor, block_table.tensor, sequences.tensor};
}

}  // namespace

void bind_indexer_logits(nb::module_& m) {
  m.def(
      "indexer_logits",
      [](Q q, K k, F32Matrix weights, I32Matrix windows, Argument<Tensor<const f32, 1>> k_scales,
         Argument<Tensor<f32, 2>> out, Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerLogitsArgs args{dense(q, k, weights, windows, k_scales), out.tensor, workspace.tensor};
        bind::run<indexer_logits_cpu, indexer_logits_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(), nb::arg("out"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_paged",
      [](Q q, F32Matrix weights, Argument<Tensor<const u8, 2>> cache, I32Matrix block_table,
         Argument<Tensor<const i32, 1>> sequences, I32Matrix windows, Argument<Tensor<f32, 2>> out,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerLogitsArgs args{paged(q, weights, cache, block_table, sequences, windows), out.tensor,
                                     workspace.tensor};
        bind::run<indexer_logits_cpu, indexer_logits_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("out"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  // For tests: the CUDA kernel with a given cut of the work, which must not show in the bits.
  m.def(
      "indexer_logits_cut",
      [](Q q, K k, F32Matrix weights, I32Matrix windows, Argument<Tensor<const f32, 1>> k_scales,
         Argument<Tensor<f32, 2>> out, int span_tiles, int blocks, u64 stream) {
        const IndexerLogitsArgs args{dense(q, k, weights, windows, k_scales), out.tensor, {}};
        bind::run_on_cuda<indexer_logits_sm90::run_cut>(args, span_tiles, blocks, reinterpret_cast<void*>(stream));
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(), nb::arg("out"),
      nb::arg("span_tiles"), nb::arg("blocks"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_paged_cut",
      [](Q q, F32Matrix weights, Argument<Tensor<const u8, 2>> cache, I32Matrix block_table,
         Argument<Tensor<const i32, 1>> sequences, I32Matrix windows, Argument<Tensor<f32, 2>> out, int span_tiles,
         int blocks, u64 stream) {
        const IndexerLogitsArgs args{paged(q, weights, cache, block_table, sequences, windows), out.tensor, {}};
        bind::run_on_cuda<indexer_logits_sm90::run_cut>(args, span_tiles, blocks, reinterpret_cast<void*>(stream));
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("out"), nb::arg("span_tiles"), nb::arg("blocks"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_logits_bwd",
      [](F32Matrix d_out, Q q, K k, F32Matrix weights, I32Matrix windows, Argument<Tensor<const f32, 1>> k_scales,
         Argument<Tensor<bf16, 3>> d_q, Argument<Tensor<bf16, 2>> d_k, Argument<Tensor<f32, 2>> d_weights,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const IndexerLogitsBwdArgs args{dense(q, k, weights, windows, k_scales),
                                        d_out.tensor,
                                        d_q.tensor,
                                        d_k.tensor,
                                        d_weights.tensor,
                                        workspace.tensor};
        bind::run<indexer_logits_bwd_cpu, indexer_logits_bwd_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("d_out"), nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(),
      nb::arg("d_q"), nb::arg("d_k"), nb::arg("d_weights"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("indexer_logits_bwd_workspace_bytes", &indexer_logits_bwd_workspace_bytes, nb::arg("heads"), nb::arg("dim"));
  m.def("indexer_logits_workspace_bytes", &indexer_logits_workspace_bytes, nb::arg("heads"), nb::arg("dim"));
}

}  // namespace glm5
