#include "ops/mla_cache_append/mla_cache_append.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_mla_cache_append(nb::module_& m) {
  using bind::Argument;
  m.def(
      "mla_cache_append",
      [](Argument<FloatTensor<2>> kv, Argument<FloatTensor<1>> norm_weight, f32 eps,
         Argument<Tensor<const i32, 1>> positions, Argument<Tensor<const f32, 3>> cos_sin,
         Argument<Tensor<const i64, 1>> cache_slots, bool power_of_two, Argument<Tensor<u8, 3>> byte_cache,
         Argument<Tensor<bf16, 3>> bf16_cache, u64 stream) {
        const MlaCacheAppendArgs args{kv.tensor,
                                      norm_weight.tensor,
                                      eps,
                                      positions.tensor,
                                      cos_sin.tensor,
                                      cache_slots.tensor,
                                      power_of_two,
                                      {byte_cache.tensor, bf16_cache.tensor}};
        bind::run<mla_cache_append_cpu, mla_cache_append_cuda>(args, kv.on_cuda, stream);
      },
      nb::arg("kv"), nb::arg("norm_weight"), nb::arg("eps"), nb::arg("positions"), nb::arg("cos_sin"),
      nb::arg("cache_slots"), nb::arg("power_of_two"), nb::arg("byte_cache").none(), nb::arg("bf16_cache").none(),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
