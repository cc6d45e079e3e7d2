#include "ops/mla_cache_gather/mla_cache_gather.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_mla_cache_gather(nb::module_& m) {
  using bind::Argument;
  m.def(
      "mla_cache_gather",
      [](Argument<Tensor<u8, 3>> byte_cache, Argument<Tensor<bf16, 3>> bf16_cache,
         Argument<Tensor<const i64, 1>> cache_slots, Argument<Tensor<bf16, 2>> out, u64 stream) {
        const MlaCacheGatherArgs args{{byte_cache.tensor, bf16_cache.tensor}, cache_slots.tensor, out.tensor};
        bind::run<mla_cache_gather_cpu, mla_cache_gather_cuda>(args, out.on_cuda, stream);
      },
      nb::arg("byte_cache").none(), nb::arg("bf16_cache").none(), nb::arg("cache_slots"), nb::arg("out"),
      nb::arg("stream"), nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
