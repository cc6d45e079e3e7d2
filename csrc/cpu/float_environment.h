// DefaultFloatEnvironment: while it lives, floats round to nearest even and subnormal numbers count in full.
//
// Programs set flush-to-zero (torch.set_flush_denormal does) or another rounding on their threads; results that promise
// the same bits must not depend on it. A kernel opens one for its piece and leaves the thread as it was.
#pragma once

#include "core/tensor.h"

#if !defined(__x86_64__)
#include <cfenv>
#endif

namespace glm5::cpu {

#if defined(__x86_64__)

class DefaultFloatEnvironment {
 public:
  GLM5_INLINE DefaultFloatEnvironment() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(kDefault); }
  GLM5_INLINE ~DefaultFloatEnvironment() { __builtin_ia32_ldmxcsr(before_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  static constexpr unsigned kDefault = 0x1f80;  // all exceptions masked, to nearest even, no FTZ, no DAZ
  unsigned before_;
};

#else

class DefaultFloatEnvironment {
 public:
  GLM5_INLINE DefaultFloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  GLM5_INLINE ~DefaultFloatEnvironment() { std::fesetenv(&before_); }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;

 private:
  std::fenv_t before_;
};

#endif

}  // namespace glm5::cpu
