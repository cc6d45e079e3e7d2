#include "core/bind.h"
#include "ops/swiglu/swiglu.h"

namespace nb = nanobind;

namespace glm5 {

void bind_swiglu(nb::module_& m) {
  using bind::Argument;
  m.def(
      "swiglu",
      [](Argument<FloatTensor<2>> gate_up, f32 limit, Argument<Tensor<const i32, 1>> offsets,
         Argument<Tensor<bf16, 2>> out, u64 stream) {
        const SwigluArgs args{{gate_up.tensor, offsets.tensor, limit}, out.tensor, {}, {}, 0, false};
        bind::run<swiglu_cpu, swiglu_cuda>(args, gate_up.on_cuda, stream);
      },
      nb::arg("gate_up"), nb::arg("limit"), nb::arg("offsets").none(), nb::arg("out"), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "swiglu_fp8",
      [](Argument<FloatTensor<2>> gate_up, f32 limit, Argument<Tensor<const i32, 1>> offsets, bool power_of_two,
         f32 amax_floor, Argument<Tensor<e4m3, 2>> values, Argument<Tensor<f32, 2>> scales, u64 stream) {
        const SwigluArgs args{{gate_up.tensor, offsets.tensor, limit}, {}, values.tensor, scales.tensor, amax_floor,
                              power_of_two};
        bind::run<swiglu_cpu, swiglu_cuda>(args, gate_up.on_cuda, stream);
      },
      nb::arg("gate_up"), nb::arg("limit"), nb::arg("offsets").none(), nb::arg("power_of_two"), nb::arg("amax_floor"),
      nb::arg("values"), nb::arg("scales"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "swiglu_bwd",
      [](Argument<Tensor<const bf16, 2>> d_out, Argument<FloatTensor<2>> gate_up, f32 limit,
         Argument<Tensor<const i32, 1>> offsets, Argument<FloatTensor<2>> d_gate_up, u64 stream) {
        const SwigluBwdArgs args{{gate_up.tensor, offsets.tensor, limit}, d_out.tensor, d_gate_up.tensor};
        bind::run<swiglu_bwd_cpu, swiglu_bwd_cuda>(args, gate_up.on_cuda, stream);
      },
      nb::arg("d_out"), nb::arg("gate_up"), nb::arg("limit"), nb::arg("offsets").none(), nb::arg("d_gate_up"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
