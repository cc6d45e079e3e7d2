// use_default_floats() .. restore_floats(): between them floats round to nearest even and subnormal numbers count in
// full.
//
// Programs set flush-to-zero (torch.set_flush_denormal does) or another rounding on their threads; results that promise
// the same bits must not depend on it. A kernel brackets its piece with the two and leaves the thread as it was.
// No constructor and destructor: those would pull the personality routine, a weak symbol, into every kernel's object.
#pragma once

#include "core/tensor.h"

#if !defined(__x86_64__)
#include <cfenv>
#endif

namespace glm5::cpu {

#if defined(__x86_64__)

struct FloatState {
  unsigned mxcsr;
};
GLM5_INLINE FloatState use_default_floats() {
  const FloatState before{__builtin_ia32_stmxcsr()};
  __builtin_ia32_ldmxcsr(0x1f80);  // all exceptions masked, to nearest even, no FTZ, no DAZ
  return before;
}
// The same, but subnormal numbers count as zero, as in the AMX unit.
GLM5_INLINE FloatState use_flushing_floats() {
  const FloatState before{__builtin_ia32_stmxcsr()};
  __builtin_ia32_ldmxcsr(0x1f80 | 0x8040);  // FTZ and DAZ
  return before;
}
GLM5_INLINE void restore_floats(const FloatState& before) { __builtin_ia32_ldmxcsr(before.mxcsr); }

#else

struct FloatState {
  std::fenv_t all;
};
GLM5_INLINE FloatState use_default_floats() {
  FloatState before;
  std::fegetenv(&before.all);
  std::fesetenv(FE_DFL_ENV);
  return before;
}
GLM5_INLINE FloatState use_flushing_floats() {
  const FloatState before = use_default_floats();
#if defined(__aarch64__)
  u64 control;
  __asm__ volatile("mrs %0, fpcr" : "=r"(control) : : "memory");
  control |= u64{1} << 24;  // FZ
  __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory");
#endif
  return before;
}
GLM5_INLINE void restore_floats(const FloatState& before) { std::fesetenv(&before.all); }

#endif

}  // namespace glm5::cpu
