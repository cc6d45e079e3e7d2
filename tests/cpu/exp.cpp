// cpu/exp.h over arrays, for tests/cpu/test_exp.py: one number at a time, and in vectors where the flags allow it.
#include "cpu/exp.h"
#include "cpu/float_environment.h"
#if defined(__AVX512F__)
#include "cpu/avx512.h"
#elif defined(__AVX2__)
#include "cpu/avx2.h"
#endif

namespace {

template <class Lanes>
void exp_array(const float* x, float* y, long count) {
  const glm5::cpu::FloatState before = glm5::cpu::use_flushing_floats();
  for (long i = 0; i < count; i += Lanes::kCount) Lanes::store(y + i, glm5::cpu::exp_of<Lanes>(Lanes::load(x + i)));
  glm5::cpu::restore_floats(before);
}

}  // namespace

extern "C" {

void exp_scalar(const float* x, float* y, long count) { exp_array<glm5::cpu::ScalarLanes>(x, y, count); }
#if defined(__AVX512F__)
void exp_vector(const float* x, float* y, long count) { exp_array<glm5::avx512::Lanes>(x, y, count); }
#elif defined(__AVX2__)
void exp_vector(const float* x, float* y, long count) { exp_array<glm5::avx2::Lanes>(x, y, count); }
#endif
void log_scalar(const float* x, float* y, long count) {
  for (long i = 0; i < count; ++i) y[i] = glm5::cpu::log_of(x[i]);
}
}
