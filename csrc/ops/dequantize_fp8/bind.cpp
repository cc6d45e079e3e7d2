#include "ops/dequantize_fp8/dequantize_fp8.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_dequantize_fp8(nb::module_& m) {
  using bind::Argument;
  m.def(
      "dequantize_fp8",
      [](Argument<Tensor<const e4m3, 2>> values, Argument<Tensor<const f32, 2>> scales, int group,
         Argument<Tensor<const i32, 1>> offsets, Argument<FloatTensor<2>> x, u64 stream) {
        const DequantizeFp8Args args{values.tensor, scales.tensor, Fp8Group(group), offsets.tensor, x.tensor};
        bind::run<dequantize_fp8_cpu, dequantize_fp8_cuda>(args, x.on_cuda, stream);
      },
      nb::arg("values"), nb::arg("scales"), nb::arg("group"), nb::arg("offsets").none(), nb::arg("x"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
