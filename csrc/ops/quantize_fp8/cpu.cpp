#include "core/fp8_check.h"
#include "cpu/isa.h"
#include "ops/quantize_fp8/areas.h"

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

void quantize_fp8_cpu(const QuantizeFp8Args& args) {
  check_fp8_shapes("quantize_fp8", args);
  check_amax_floor(args.amax_floor);
  if (args.offsets.exists()) check_fp8_offsets("quantize_fp8", args.offsets, args.x.shape[0]);
  static constexpr cpu::Implementation<QuantizeFp8Args> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::quantize_fp8},
      {cpu::Isa::avx2, avx2::quantize_fp8},
#endif
      {cpu::Isa::generic, generic::quantize_fp8},
  };
  cpu::run_best(implementations, args, cpu::count_fp8_areas(args, quantize::kTiling));
}

}  // namespace glm5
