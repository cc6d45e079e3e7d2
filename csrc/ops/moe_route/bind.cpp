#include "core/bind.h"
#include "ops/moe_route/moe_route.h"

namespace nb = nanobind;

namespace glm5 {

void bind_moe_route(nb::module_& m) {
  using bind::Argument;
  m.def(
      "moe_route",
      [](Argument<Tensor<const f32, 2>> logits, Argument<Tensor<const f32, 1>> bias,
         Argument<Tensor<const u8, 2>> replay_bytes, Argument<Tensor<const i32, 2>> replay, i64 n_group, i64 topk_group,
         bool softmax, bool normalize, f32 scale, Argument<Tensor<i32, 2>> experts, Argument<Tensor<f32, 2>> weights,
         Argument<Tensor<i32, 1>> counts, u64 stream) {
        const MoeRouteArgs args{logits.tensor, bias.tensor, replay_bytes.tensor, replay.tensor,  n_group,
                                topk_group,    softmax,     normalize,           scale,          experts.tensor,
                                weights.tensor, counts.tensor};
        bind::run<moe_route_cpu, moe_route_cuda>(args, logits.on_cuda, stream);
      },
      nb::arg("logits"), nb::arg("bias").none(), nb::arg("replay_bytes").none(), nb::arg("replay").none(),
      nb::arg("n_group"), nb::arg("topk_group"), nb::arg("softmax"), nb::arg("normalize"), nb::arg("scale"),
      nb::arg("experts"), nb::arg("weights"), nb::arg("counts"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "moe_route_bwd",
      [](Argument<Tensor<const f32, 2>> d_weights, Argument<Tensor<const f32, 2>> logits,
         Argument<Tensor<const i32, 2>> experts, bool softmax, bool normalize, f32 scale,
         Argument<Tensor<f32, 2>> d_logits, u64 stream) {
        const MoeRouteBwdArgs args{d_weights.tensor, logits.tensor, experts.tensor, softmax,
                                   normalize,        scale,         d_logits.tensor};
        bind::run<moe_route_bwd_cpu, moe_route_bwd_cuda>(args, logits.on_cuda, stream);
      },
      nb::arg("d_weights"), nb::arg("logits"), nb::arg("experts"), nb::arg("softmax"), nb::arg("normalize"),
      nb::arg("scale"), nb::arg("d_logits"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
