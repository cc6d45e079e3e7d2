#include "cpu/isa.h"
#include "ops/swiglu/check.h"
#include "ops/swiglu/items.h"

namespace glm5 {

namespace generic {
void swiglu(const SwigluArgs&, i64 begin, i64 end, i64 thread);
void swiglu_bwd(const SwigluBwdArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void swiglu(const SwigluArgs&, i64 begin, i64 end, i64 thread);
void swiglu_bwd(const SwigluBwdArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void swiglu(const SwigluArgs&, i64 begin, i64 end, i64 thread);
void swiglu_bwd(const SwigluBwdArgs&, i64 begin, i64 end, i64 thread);
}
#endif

namespace {

constexpr i64 kGrain = 16;  // strips: some 5 us, more than waking a thread costs

}  // namespace

void swiglu_cpu(const SwigluArgs& args) {
  check_swiglu("swiglu", args.inputs);
  static constexpr cpu::Implementation<SwigluArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::swiglu},
      {cpu::Isa::avx2, avx2::swiglu},
#endif
      {cpu::Isa::generic, generic::swiglu},
  };
  cpu::run_best(implementations, args, args.inputs.rows() * swiglu::strips_of(args.inputs), kGrain);
}

void swiglu_bwd_cpu(const SwigluBwdArgs& args) {
  check_swiglu("swiglu_bwd", args.inputs);
  static constexpr cpu::Implementation<SwigluBwdArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::swiglu_bwd},
      {cpu::Isa::avx2, avx2::swiglu_bwd},
#endif
      {cpu::Isa::generic, generic::swiglu_bwd},
  };
  cpu::run_best(implementations, args, args.inputs.rows() * swiglu::strips_of(args.inputs), kGrain);
}

}  // namespace glm5
