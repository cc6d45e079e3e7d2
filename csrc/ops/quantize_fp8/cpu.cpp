#include "cpu/isa.h"
#include "ops/quantize_fp8/areas.h"
#include "ops/quantize_fp8/check.h"

namespace glm5 {

namespace generic {
void quantize_fp8(const QuantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void quantize_fp8(const QuantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void quantize_fp8(const QuantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
#endif

namespace {

void check_offsets(const Tensor<const i32, 1>& offsets, i64 rows) {
  i64 before = 0;
  for (i64 e = 0; e < offsets.shape[0]; ++e) {
    const i64 offset = *offsets.at(e);
    require(offset >= before && offset <= rows, "quantize_fp8: offsets must ascend within 0 .. ", rows, "; offsets[", e,
            "] is ", offset, " after ", before);
    before = offset;
  }
}

}  // namespace

void quantize_fp8_cpu(const QuantizeFp8Args& args) {
  quantize::check(args);
  if (args.offsets.exists()) check_offsets(args.offsets, args.x.shape[0]);
  static constexpr cpu::Implementation<QuantizeFp8Args> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::quantize_fp8},
      {cpu::Isa::avx2, avx2::quantize_fp8},
#endif
      {cpu::Isa::generic, generic::quantize_fp8},
  };
  cpu::run_best(implementations, args, quantize::count_areas(args));
}

}  // namespace glm5
