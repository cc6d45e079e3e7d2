// Tensor<T, Rank>: a pointer, a shape and strides. Trivially copyable, so it crosses into a kernel as it is.
#pragma once

#include "core/types.h"

// The one macro: a function that every file inlines, so that no object file holds a copy the linker could share between
// instruction sets (tests/architecture/test_isa_objects.py holds this).
#ifdef __CUDACC__
#define GLM5_INLINE __host__ __device__ __forceinline__
#else
#define GLM5_INLINE [[gnu::always_inline]] inline
#endif

namespace glm5 {

template <class T, int Rank>
struct Tensor {
  T* data;
  i64 shape[Rank];
  i64 stride[Rank];  // in elements

  template <class... Index>
  GLM5_INLINE T* at(Index... index) const {
    static_assert(sizeof...(Index) == Rank);
    const i64 indices[] = {static_cast<i64>(index)...};
    i64 offset = 0;
    for (int d = 0; d < Rank; ++d) offset += indices[d] * stride[d];
    return data + offset;
  }

  // False for an optional tensor that was not given.
  GLM5_INLINE bool exists() const { return data != nullptr; }
};

// A tensor whose element type is one of several floating-point types.
template <int Rank>
struct FloatTensor {
  void* data;
  Float dtype;
  i64 shape[Rank];
  i64 stride[Rank];  // in elements

  template <class T>
  GLM5_INLINE Tensor<T, Rank> as() const {
    Tensor<T, Rank> typed{static_cast<T*>(data), {}, {}};
    for (int d = 0; d < Rank; ++d) {
      typed.shape[d] = shape[d];
      typed.stride[d] = stride[d];
    }
    return typed;
  }
};

// One matrix of a batch.
GLM5_INLINE FloatTensor<2> matrix_of(const FloatTensor<3>& tensor, i64 batch) {
  const i64 bytes = tensor.dtype == Float::f32 ? 4 : 2;
  return {static_cast<u8*>(tensor.data) + batch * tensor.stride[0] * bytes,
          tensor.dtype,
          {tensor.shape[1], tensor.shape[2]},
          {tensor.stride[1], tensor.stride[2]}};
}

GLM5_INLINE constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
GLM5_INLINE constexpr i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
GLM5_INLINE constexpr i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
GLM5_INLINE constexpr i64 larger(i64 a, i64 b) { return a < b ? b : a; }

}  // namespace glm5
