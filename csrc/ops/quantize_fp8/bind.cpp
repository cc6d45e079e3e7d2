#include "ops/quantize_fp8/quantize_fp8.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_quantize_fp8(nb::module_& m) {
  using bind::Argument;
  m.def(
      "quantize_fp8",
      [](Argument<FloatTensor<2>> x, int group, bool power_of_two, f32 amax_floor,
         Argument<Tensor<const i32, 1>> offsets, Argument<Tensor<e4m3, 2>> values,
         Argument<Tensor<f32, 2>> scales, u64 stream) {
        const QuantizeFp8Args args{x.tensor,       Fp8Group(group), power_of_two, amax_floor,
                                   offsets.tensor, values.tensor,   scales.tensor};
        bind::run<quantize_fp8_cpu, quantize_fp8_cuda>(args, x.on_cuda, stream);
      },
      nb::arg("x"), nb::arg("group"), nb::arg("power_of_two"), nb::arg("amax_floor"), nb::arg("offsets").none(),
      nb::arg("values"), nb::arg("scales"), nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
