#include "core/bind.h"
#include "ops/sparse_mla_attention/sparse_mla_attention.h"

namespace nb = nanobind;

namespace glm5 {

void bind_sparse_mla_attention(nb::module_& m) {
  using bind::Argument;
  m.def(
      "sparse_mla_attention",
      [](Argument<Tensor<const bf16, 3>> q, Argument<Tensor<const bf16, 2>> kv, Argument<Tensor<const i32, 2>> indices,
         f32 scale, Argument<Tensor<const i32, 1>> topk_length, Argument<Tensor<const f32, 1>> sink,
         Argument<Tensor<bf16, 3>> out, Argument<Tensor<f32, 2>> lse, Argument<Tensor<f32, 2>> probabilities,
         Argument<Tensor<u8, 1>> workspace, u64 stream) {
        const SparseMlaAttentionArgs args{q.tensor,    kv.tensor,  indices.tensor, scale,
                                          topk_length.tensor, sink.tensor, out.tensor, lse.tensor,
                                          probabilities.tensor, workspace.tensor};
        bind::run<sparse_mla_attention_cpu, sparse_mla_attention_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("kv"), nb::arg("indices"), nb::arg("scale"), nb::arg("topk_length").none(),
      nb::arg("sink").none(), nb::arg("out"), nb::arg("lse"), nb::arg("probabilities"), nb::arg("workspace"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "sparse_mla_decode",
      [](Argument<Tensor<const bf16, 3>> q, Argument<Tensor<u8, 3>> byte_cache, Argument<Tensor<bf16, 3>> bf16_cache,
         Argument<Tensor<const i32, 2>> indices, f32 scale, Argument<Tensor<const i32, 2>> block_table,
         Argument<Tensor<const i32, 1>> sequences, Argument<Tensor<const i32, 1>> topk_length,
         Argument<Tensor<const f32, 1>> sink, Argument<Tensor<bf16, 3>> out, Argument<Tensor<f32, 2>> lse,
         Argument<Tensor<u8, 1>> workspace, bool fast, u64 stream) {
        SparseMlaAttentionArgs args{q.tensor, {}, indices.tensor, scale, topk_length.tensor, sink.tensor, out.tensor,
                                    lse.tensor, {}, workspace.tensor};
        args.is_paged = true;
        args.cache = {byte_cache.tensor, bf16_cache.tensor};
        args.block_table = block_table.tensor;
        args.sequences = sequences.tensor;
        if (fast) return bind::run<sparse_mla_decode_fast_cpu, sparse_mla_decode_fast_cuda>(args, q.on_cuda, stream);
        bind::run<sparse_mla_attention_cpu, sparse_mla_attention_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("q"), nb::arg("byte_cache").none(), nb::arg("bf16_cache").none(), nb::arg("indices"), nb::arg("scale"),
      nb::arg("block_table").none(), nb::arg("sequences").none(), nb::arg("topk_length").none(),
      nb::arg("sink").none(), nb::arg("out"), nb::arg("lse"), nb::arg("workspace"), nb::arg("fast"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def("sparse_mla_decode_workspace_bytes", &sparse_mla_decode_workspace_bytes, nb::arg("heads"), nb::arg("topk"),
        nb::arg("byte_cache"));
  m.def("sparse_mla_decode_fast_workspace_bytes", &sparse_mla_decode_fast_workspace_bytes, nb::arg("tokens"),
        nb::arg("heads"), nb::arg("topk"));
  m.def("sparse_mla_decode_fast_cuda_workspace_bytes", &sparse_mla_decode_fast_cuda_workspace_bytes, nb::arg("tokens"),
        nb::arg("heads"), nb::arg("topk"));
  m.def(
      "sparse_mla_attention_bwd",
      [](Argument<Tensor<const bf16, 3>> d_out, Argument<Tensor<const f32, 2>> d_lse, Argument<Tensor<const bf16, 3>> q,
         Argument<Tensor<const bf16, 2>> kv, Argument<Tensor<const i32, 2>> indices,
         Argument<Tensor<const bf16, 3>> out, Argument<Tensor<const f32, 2>> lse, f32 scale,
         Argument<Tensor<const i32, 1>> topk_length, Argument<Tensor<const f32, 1>> sink, Argument<Tensor<bf16, 3>> d_q,
         Argument<Tensor<bf16, 2>> d_kv, Argument<Tensor<f32, 1>> d_sink, Argument<Tensor<u8, 1>> workspace,
         u64 stream) {
        const SparseMlaAttentionBwdArgs args{
            d_out.tensor, d_lse.tensor, q.tensor,           kv.tensor,   indices.tensor, out.tensor,  lse.tensor,
            scale,        topk_length.tensor, sink.tensor, d_q.tensor, d_kv.tensor, d_sink.tensor, workspace.tensor};
        bind::run<sparse_mla_attention_bwd_cpu, sparse_mla_attention_bwd_cuda>(args, q.on_cuda, stream);
      },
      nb::arg("d_out"), nb::arg("d_lse"), nb::arg("q"), nb::arg("kv"), nb::arg("indices"), nb::arg("out"),
      nb::arg("lse"), nb::arg("scale"), nb::arg("topk_length").none(), nb::arg("sink").none(), nb::arg("d_q"),
      nb::arg("d_kv"), nb::arg("d_sink"), nb::arg("workspace"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def("sparse_mla_attention_bwd_workspace_bytes", &sparse_mla_attention_bwd_workspace_bytes, nb::arg("tokens"),
        nb::arg("heads"), nb::arg("qk_dim"), nb::arg("v_dim"), nb::arg("topk"), nb::arg("keys"));
  m.def("sparse_mla_attention_bwd_cuda_workspace_bytes", &sparse_mla_attention_bwd_cuda_workspace_bytes,
        nb::arg("tokens"), nb::arg("heads"), nb::arg("qk_dim"), nb::arg("v_dim"), nb::arg("topk"), nb::arg("keys"));
  m.def("sparse_mla_attention_workspace_bytes", &sparse_mla_attention_workspace_bytes, nb::arg("heads"),
        nb::arg("qk_dim"), nb::arg("v_dim"), nb::arg("topk"));
}

}  // namespace glm5
