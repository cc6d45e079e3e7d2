#include "core/fp8_check.h"
#include "cpu/isa.h"
#include "ops/dequantize_fp8/areas.h"

namespace glm5 {

namespace generic {
void dequantize_fp8(const DequantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void dequantize_fp8(const DequantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void dequantize_fp8(const DequantizeFp8Args&, i64 begin, i64 end, i64 thread);
}
#endif

void dequantize_fp8_cpu(const DequantizeFp8Args& args) {
  check_fp8_shapes("dequantize_fp8", args);
  if (args.offsets.exists()) check_fp8_offsets("dequantize_fp8", args.offsets, args.x.shape[0]);
  static constexpr cpu::Implementation<DequantizeFp8Args> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::dequantize_fp8},
      {cpu::Isa::avx2, avx2::dequantize_fp8},
#endif
      {cpu::Isa::generic, generic::dequantize_fp8},
  };
  cpu::run_best(implementations, args, cpu::count_fp8_areas(args, dequantize::kTiling));
}

}  // namespace glm5
