// How a warp writes its 16 left rows of a tile: accumulators -> 2 KiB of shared memory -> 16 bytes per thread.
//
// Plain stores, not the copy engine: any stride and alignment of out, any m and n and accumulation take one path, and once
// issued nobody waits for them. A register of 8 columns goes to shared memory without bank conflicts; each row (swapped:
// each token) then leaves as whole 32-byte sectors.
#pragma once

#include "core/tensor.h"
#include "cuda/ptx/cvt.cuh"

namespace glm5::fp8_gemm_sm90 {

struct Output {
  FloatTensor<2> out;
  int m, n;
  bool accumulate;
  bool rows_are_aligned;  // every row of out starts at a multiple of 16 bytes
};

__device__ __forceinline__ f32 load_f32(const f32* from) { return *from; }
__device__ __forceinline__ f32 load_f32(const bf16* from) {
  return __uint_as_float(static_cast<u32>(reinterpret_cast<const u16*>(from)[0]) << 16);
}

template <bool kSwapped>
struct Place {
  int i, j;  // of out[i, j]
  __device__ __forceinline__ Place(int left, int right) : i(kSwapped ? right : left), j(kSwapped ? left : right) {}
};

// total += out, in f32, in accumulator order.
template <bool kSwapped, class Out, int kRight>
__device__ __forceinline__ void add_out(const Output& output, f32 (&total)[kRight / 2], int left_row, int right_row) {
  const int lane = threadIdx.x % 32;
  const Tensor<Out, 2> out = output.out.as<Out>();
#pragma unroll
  for (int i = 0; i < kRight / 2; ++i) {
    const Place<kSwapped> place(left_row + lane / 4 + i / 2 % 2 * 8, right_row + i / 4 * 8 + lane % 4 * 2 + i % 2);
    if (place.i < output.m && place.j < output.n) total[i] = __fadd_rn(load_f32(out.at(place.i, place.j)), total[i]);
  }
}

__device__ __forceinline__ void put_pair(u8* to, f32 first, f32 second, f32) {
  *reinterpret_cast<float2*>(to) = {first, second};
}
__device__ __forceinline__ void put_pair(u8* to, f32 first, f32 second, bf16) {
  *reinterpret_cast<u32*>(to) = ptx::cvt_rn_bf16x2_f32(second, first);
}
__device__ __forceinline__ void put_one(u8* to, f32 value, f32) { *reinterpret_cast<f32*>(to) = value; }
__device__ __forceinline__ void put_one(u8* to, f32 value, bf16) {
  *reinterpret_cast<u16*>(to) = static_cast<u16>(ptx::cvt_rn_bf16x2_f32(0.0f, value));
}

// 16 bytes of row i of out from column j on.
template <class Out>
__device__ __forceinline__ void write_piece(const Output& output, int i, int j, uint4 piece) {
  constexpr int kValues = 16 / sizeof(Out);
  if (i >= output.m || j >= output.n) return;
  Out* to = output.out.as<Out>().at(i, j);
  if (output.rows_are_aligned && j + kValues <= output.n) {
    *reinterpret_cast<uint4*>(to) = piece;
    return;
  }
  const u32 words[] = {piece.x, piece.y, piece.z, piece.w};
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    if (j + v >= output.n) break;
    if constexpr (sizeof(Out) == 4) {
      reinterpret_cast<u32*>(to)[v] = words[v];
    } else {
      reinterpret_cast<u16*>(to)[v] = static_cast<u16>(words[v / 2] >> (v % 2 * 16));
    }
  }
}

// Columns first_column.. of the tile, kColumns of them. Rows of 128 bytes in shared memory, whose 16-byte pieces are
// exchanged by the row's number: the eight rows that a register of the warp spans then lie in different banks.
template <class Out, int kColumns>
__device__ __forceinline__ void store_chunk(const Output& output, const f32* total, u8* staging, int left_row,
                                            int right_row) {
  constexpr int kPieces = kColumns * sizeof(Out) / 16;  // per row
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int row = lane / 4 + i / 2 % 2 * 8, byte = (i / 4 * 8 + lane % 4 * 2) * sizeof(Out);
    put_pair(staging + row * 128 + ((byte / 16 ^ row % 8) * 16 + byte % 16), total[i], total[i + 1], Out{});
  }
  __syncwarp();
#pragma unroll
  for (int first = 0; first < 16 * kPieces; first += 32) {
    const int row = (first + lane) / kPieces, piece = (first + lane) % kPieces;
    const uint4 values = *reinterpret_cast<const uint4*>(staging + row * 128 + (piece ^ row % 8) * 16);
    write_piece<Out>(output, left_row + row, right_row + piece * (16 / static_cast<int>(sizeof(Out))), values);
  }
  __syncwarp();
}

// The same, transposed: in shared memory the 16 left rows of a column lie side by side.
template <class Out, int kColumns>
__device__ __forceinline__ void store_chunk_swapped(const Output& output, const f32* total, u8* staging, int left_row,
                                                    int right_row) {
  constexpr int kPieces = sizeof(Out);  // 16 values, in pieces of 16 bytes
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    put_one(staging + (column * 16 + row) * sizeof(Out), total[i], Out{});
  }
  __syncwarp();
#pragma unroll
  for (int first = 0; first < kColumns * kPieces; first += 32) {
    const int column = (first + lane) / kPieces, piece = (first + lane) % kPieces;
    const uint4 values = *reinterpret_cast<const uint4*>(staging + (first + lane) * 16);
    write_piece<Out>(output, right_row + column, left_row + piece * (16 / static_cast<int>(sizeof(Out))), values);
  }
  __syncwarp();
}

template <bool kSwapped, class Out, int kRight>
__device__ __forceinline__ void store_as(const Output& output, f32 (&total)[kRight / 2], u8* staging, int left_row,
                                         int right_row) {
  constexpr int kWidth = 128 / sizeof(Out);  // columns that 2 KiB hold
  if (output.accumulate) add_out<kSwapped, Out, kRight>(output, total, left_row, right_row);
#pragma unroll
  for (int column = 0; column + kWidth <= kRight; column += kWidth) {
    if constexpr (kSwapped) {
      store_chunk_swapped<Out, kWidth>(output, total + column / 2, staging, left_row, right_row + column);
    } else {
      store_chunk<Out, kWidth>(output, total + column / 2, staging, left_row, right_row + column);
    }
  }
  if constexpr (kRight % kWidth != 0) {
    constexpr int kRest = kRight % kWidth, kFirst = kRight - kRest;
    if constexpr (kSwapped) {
      store_chunk_swapped<Out, kRest>(output, total + kFirst / 2, staging, left_row, right_row + kFirst);
    } else {
      store_chunk<Out, kRest>(output, total + kFirst / 2, staging, left_row, right_row + kFirst);
    }
  }
}

// The warp's 16 rows of the left operand, from left_row on, by kRight rows of the right operand.
template <bool kSwapped, int kRight>
__device__ __forceinline__ void store_rows(const Output& output, f32 (&total)[kRight / 2], u8* staging, int left_row,
                                           int right_row) {
  if (output.out.dtype == Float::f32) {
    store_as<kSwapped, f32, kRight>(output, total, staging, left_row, right_row);
  } else {
    store_as<kSwapped, bf16, kRight>(output, total, staging, left_row, right_row);
  }
}

}  // namespace glm5::fp8_gemm_sm90
