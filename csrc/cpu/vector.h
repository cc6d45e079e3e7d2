// Vectors whose width is a template parameter: a kernel is written once, for AVX2 (vector_avx2.h: avx2::Vector) and
// AVX-512 (vector_avx512.h: avx512::Vector).
//
// Arithmetic, shifts and comparisons are the compiler's operators on these types. Only what has no operator is a
// function of Vector; there a "lane" is 16 bytes, which most instructions on bytes do not look beyond.
#pragma once

#include "core/tensor.h"

namespace glm5::cpu {

template <int kWidth>
struct VectorTypes {
  static constexpr i64 kBytes = kWidth;
  static constexpr i64 kFloats = kWidth / 4;
  typedef u8 u8s __attribute__((vector_size(kWidth)));
  typedef u16 u16s __attribute__((vector_size(kWidth)));
  typedef u32 u32s __attribute__((vector_size(kWidth)));
  typedef i16 i16s __attribute__((vector_size(kWidth)));
  typedef i32 i32s __attribute__((vector_size(kWidth)));
  typedef f32 f32s __attribute__((vector_size(kWidth)));

  // Integers of the size of T.
  template <class T, int kSize = sizeof(T)>
  struct Ints {
    using Unsigned = u16s;
    using Signed = i16s;
  };
  template <class T>
  struct Ints<T, 4> {
    using Unsigned = u32s;
    using Signed = i32s;
  };
};

template <class Numbers>
GLM5_INLINE Numbers smaller_of(Numbers a, Numbers b) {
  return a < b ? a : b;
}
template <class Numbers>
GLM5_INLINE Numbers larger_of(Numbers a, Numbers b) {
  return a < b ? b : a;
}

// As many T as a lane holds, n, in each of n vectors: lane by lane n x n numbers are transposed. One interleaving of
// vector j with vector j + n / 2 turns the bits (j, place in the lane) by one; log2(n) of them exchange j and place.
template <class Vector, class T>
GLM5_INLINE void transpose_lanes(typename Vector::u8s (&x)[16 / sizeof(T)]) {
  constexpr int n = 16 / sizeof(T);
#pragma GCC unroll 4
  for (int level = 1; level < n; level *= 2) {
    typename Vector::u8s y[n];
#pragma GCC unroll 8
    for (int j = 0; j < n / 2; ++j) {
      y[2 * j] = Vector::template interleave_low<sizeof(T)>(x[j], x[j + n / 2]);
      y[2 * j + 1] = Vector::template interleave_high<sizeof(T)>(x[j], x[j + n / 2]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) x[j] = y[j];
  }
}

}  // namespace glm5::cpu
