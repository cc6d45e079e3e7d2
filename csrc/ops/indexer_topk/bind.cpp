#include "core/bind.h"
#include "ops/indexer_topk/config.h"
#include "ops/indexer_topk/indexer_topk.h"
#include "ops/indexer_topk/launch_sm90.h"

namespace nb = nanobind;

namespace glm5 {

namespace {

using bind::Argument;
using Q = Argument<IndexerTensor<3>>;
using K = Argument<IndexerTensor<2>>;
using F32Matrix = Argument<Tensor<const f32, 2>>;
using I32Matrix = Argument<Tensor<const i32, 2>>;
using Scales = Argument<Tensor<const f32, 1>>;
using Pages = Argument<Tensor<const u8, 2>>;
using Sequences = Argument<Tensor<const i32, 1>>;
using Indices = Argument<Tensor<i32, 2>>;
using Margins = Argument<Tensor<f32, 1>>;
using Fingerprints = Argument<Tensor<i64, 1>>;
using Workspace = Argument<Tensor<u8, 1>>;

IndexerOperands dense(const Q& q, const K& k, const F32Matrix& weights, const I32Matrix& windows,
                      const Scales& k_scales) {
  return {q.tensor, weights.tensor, windows.tensor, false, k.tensor, k_scales.tensor, {}, {}, {}};
}

IndexerOperands paged(const Q& q, const F32Matrix& weights, const Pages& cache, const I32Matrix& block_table,
                      const Sequences& sequences, const I32Matrix& windows) {
  return {q.tensor, weights.tensor, windows.tensor, true, {}, {}, cache.tensor, block_table.tensor, sequences.tensor};
}

void bind_cuts(nb::module_& m) {
  m.def(
      "indexer_topk_cut",
      [](Q q, K k, F32Matrix weights, I32Matrix windows, Scales k_scales, Indices indices, Margins margins,
         Fingerprints fingerprints, Workspace workspace, int splits, int chunk_tiles, int blocks, u64 stream) {
        const IndexerTopkArgs args{dense(q, k, weights, windows, k_scales),
                                   false,
                                   indices.tensor,
                                   margins.tensor,
                                   fingerprints.tensor,
                                   workspace.tensor};
        bind::run_on_cuda<indexer_topk_sm90::run_cut>(args, splits, chunk_tiles, blocks,
                                                      reinterpret_cast<void*>(stream));
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(),
      nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"), nb::arg("workspace"), nb::arg("splits"),
      nb::arg("chunk_tiles"), nb::arg("blocks"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_topk_paged_cut",
      [](Q q, F32Matrix weights, Pages cache, I32Matrix block_table, Sequences sequences, I32Matrix windows,
         bool physical, Indices indices, Margins margins, Fingerprints fingerprints, Workspace workspace, int splits,
         int chunk_tiles, int blocks, u64 stream) {
        const IndexerTopkArgs args{paged(q, weights, cache, block_table, sequences, windows),
                                   physical,
                                   indices.tensor,
                                   margins.tensor,
                                   fingerprints.tensor,
                                   workspace.tensor};
        bind::run_on_cuda<indexer_topk_sm90::run_cut>(args, splits, chunk_tiles, blocks,
                                                      reinterpret_cast<void*>(stream));
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("physical"), nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"),
      nb::arg("workspace"), nb::arg("splits"), nb::arg("chunk_tiles"), nb::arg("blocks"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_topk_cut_workspace_bytes",
      [](i64 tokens, i64 keys, i64 heads, i64 topk, int splits, int chunk_tiles, int blocks) {
        using namespace indexer_topk_sm90;
        return workspace_bytes(plan_of(tokens, keys, heads, topk, splits, chunk_tiles, blocks), tokens);
      },
      nb::arg("tokens"), nb::arg("keys"), nb::arg("heads"), nb::arg("topk"), nb::arg("splits"), nb::arg("chunk_tiles"),
      nb::arg("blocks"));
}

}  // namespace

void bind_indexer_topk(nb::module_& m) {
  m.def(
      "indexer_topk",
      [](Q q, K k, F32Matrix weights, I32Matrix windows, Scales k_scales, Indices indices, Margins margins,
         Fingerprints fingerprints, Workspace workspace, u64 stream) {
        const IndexerTopkArgs args{dense(q, k, weights, windows, k_scales),
                                   false,
                                   indices.tensor,
                                   margins.tensor,
                                   fingerprints.tensor,
                                   workspace.tensor};
        bind::run<indexer_topk_cpu, indexer_topk_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("k"), nb::arg("weights"), nb::arg("windows"), nb::arg("k_scales").none(),
      nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "indexer_topk_paged",
      [](Q q, F32Matrix weights, Pages cache, I32Matrix block_table, Sequences sequences, I32Matrix windows,
         bool physical, Indices indices, Margins margins, Fingerprints fingerprints, Workspace workspace, u64 stream) {
        const IndexerTopkArgs args{paged(q, weights, cache, block_table, sequences, windows),
                                   physical,
                                   indices.tensor,
                                   margins.tensor,
                                   fingerprints.tensor,
                                   workspace.tensor};
        bind::run<indexer_topk_cpu, indexer_topk_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("weights"), nb::arg("cache"), nb::arg("block_table"), nb::arg("sequences"),
      nb::arg("windows"), nb::arg("physical"), nb::arg("indices"), nb::arg("margins"), nb::arg("fingerprints"),
      nb::arg("workspace"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def("indexer_topk_workspace_bytes", &indexer_topk_workspace_bytes, nb::arg("tokens"), nb::arg("keys"),
        nb::arg("heads"), nb::arg("dim"), nb::arg("topk"), nb::arg("margins"));
  m.def(
      "indexer_topk_cuda_workspace_bytes",
      [](i64 tokens, i64 keys, i64 heads, i64, i64 topk, bool) {
        return indexer_topk_sm90::workspace_bytes_of(tokens, keys, heads, topk);
      },
      nb::arg("tokens"), nb::arg("keys"), nb::arg("heads"), nb::arg("dim"), nb::arg("topk"), nb::arg("margins"));
  // For tests: the CUDA kernels with a given cut of the work (config.h), which must not show in the results.
  bind_cuts(m);
}

}  // namespace glm5
