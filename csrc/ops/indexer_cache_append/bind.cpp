#include "ops/indexer_cache_append/indexer_cache_append.h"

#include "core/bind.h"

namespace nb = nanobind;

namespace glm5 {

void bind_indexer_cache_append(nb::module_& m) {
  using bind::Argument;
  m.def(
      "indexer_cache_append",
      [](Argument<FloatTensor<2>> k, Argument<FloatTensor<1>> norm_weight, Argument<FloatTensor<1>> norm_bias, f32 eps,
         Argument<Tensor<const i32, 1>> positions, Argument<Tensor<const f32, 3>> cos_sin,
         Argument<Tensor<const i64, 1>> cache_slots, bool hadamard, bool power_of_two,
         Argument<Tensor<u8, 2>> byte_cache, Argument<Tensor<bf16, 3>> bf16_cache, u64 stream) {
        const IndexerCacheAppendArgs args{k.tensor,         norm_weight.tensor, norm_bias.tensor,   eps,
                                          positions.tensor, cos_sin.tensor,     cache_slots.tensor, hadamard,
                                          power_of_two,     byte_cache.tensor,  bf16_cache.tensor};
        bind::run<indexer_cache_append_cpu, indexer_cache_append_cuda>(args, k.on_cuda, stream);
      },
      nb::arg("k"), nb::arg("norm_weight"), nb::arg("norm_bias"), nb::arg("eps"), nb::arg("positions"),
      nb::arg("cos_sin"), nb::arg("cache_slots"), nb::arg("hadamard"), nb::arg("power_of_two"),
      nb::arg("byte_cache").none(), nb::arg("bf16_cache").none(), nb::arg("stream"),
      nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace glm5
