// Rows by pieces of 8 neighbours, and pieces to e4m3 with the bits of core/fp8.h: 16 bytes of a 16-bit type in, 8 bytes
// out. What is ragged or not aligned moves value by value.
//
// The quotient is made by one reciprocal of the scale and two fused multiply-adds (Markstein); scales below 2^-90 are
// lifted by 2^64 first, so that the remainder is exact for them too.
#pragma once

#include <cuda_fp16.h>

#include "core/fp8.h"
#include "cuda/ptx/cvt.cuh"

namespace glm5::cuda {

constexpr int kPiece = 8;  // neighbours in a row that a thread holds

__device__ __forceinline__ bool is_aligned(const void* pointer, u32 bytes) {
  return (reinterpret_cast<std::uintptr_t>(pointer) & (bytes - 1)) == 0;
}

template <class T>
struct alignas(16) Piece {
  T values[kPiece];
};

// The first `count` of 8 values, zeros for the others.
template <class T>
__device__ __forceinline__ Piece<T> load_piece(const T* x, i64 count) {
  Piece<T> piece;
  if (count >= kPiece && is_aligned(x, 16)) {
    uint4* words = reinterpret_cast<uint4*>(&piece);
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(piece) / 16); ++i)
      words[i] = __ldg(reinterpret_cast<const uint4*>(x) + i);
    return piece;
  }
#pragma unroll
  for (int i = 0; i < kPiece; ++i) piece.values[i] = i < count ? x[i] : T{};
  return piece;
}

// Stores the first `count` of 8 values.
template <class T>
__device__ __forceinline__ void store_piece(T* to, const Piece<T>& piece, i64 count) {
  if (count >= kPiece && is_aligned(to, 16)) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(piece) / 16); ++i)
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(&piece)[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kPiece; ++i)
    if (i < count) to[i] = piece.values[i];
}

__device__ __forceinline__ f32 f32_of(f32 value) { return value; }
__device__ __forceinline__ f32 f32_of(bf16 value) { return to_f32(value); }
__device__ __forceinline__ f32 f32_of(f16 value) { return __half2float(__ushort_as_half(value.bits)); }

// The larger of amax and the magnitude, both as bits, which order as integers; what is not finite does not count.
__device__ __forceinline__ u32 max_finite(u32 amax, f32 value) {
  const u32 magnitude = bits_of(value) & 0x7fffffff;
  return max(amax, magnitude < 0x7f800000 ? magnitude : 0);
}

template <class T>
__device__ __forceinline__ u32 max_finite(u32 amax, const Piece<T>& piece) {
#pragma unroll
  for (int i = 0; i < kPiece; ++i) amax = max_finite(amax, f32_of(piece.values[i]));
  return amax;
}

// ---- Values ----

struct Divisor {
  f32 scale, reciprocal, lift;
  Divisor() = default;
  __device__ __forceinline__ explicit Divisor(f32 group_scale) {
    lift = group_scale < 0x1p-90f ? 0x1p64f : 1.0f;
    scale = group_scale * lift;
    reciprocal = __fdiv_rn(1.0f, scale);
  }
};

// x / scale rounded to nearest, with the sign of x also for zero; NaN where x is not finite.
__device__ __forceinline__ f32 quotient(f32 x, const Divisor& by) {
  const f32 magnitude = fabsf(x) * by.lift;
  const f32 estimate = magnitude * by.reciprocal;
  const f32 remainder = __fmaf_rn(-estimate, by.scale, magnitude);
  const f32 rounded = __fmaf_rn(remainder, by.reciprocal, estimate);
  return is_finite(x) ? copysignf(rounded, x) : f32_of_bits(0x7fffffff);
}

__device__ __forceinline__ u32 values_of(f32 x0, f32 x1, const Divisor& by) {
  return ptx::cvt_rn_satfinite_e4m3x2_f32(quotient(x1, by), quotient(x0, by));
}

template <class T>
__device__ __forceinline__ void store_piece(e4m3* values, const Piece<T>& piece, const Divisor& by, i64 count) {
  u32 words[2];
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    words[w] = values_of(f32_of(piece.values[4 * w]), f32_of(piece.values[4 * w + 1]), by) |
               values_of(f32_of(piece.values[4 * w + 2]), f32_of(piece.values[4 * w + 3]), by) << 16;
  }
  if (count >= kPiece && is_aligned(values, 8)) {
    *reinterpret_cast<uint2*>(values) = {words[0], words[1]};
    return;
  }
#pragma unroll
  for (int i = 0; i < kPiece; ++i)
    if (i < count) values[i] = {static_cast<u8>(words[i / 4] >> (i % 4 * 8))};
}

}  // namespace glm5::cuda
