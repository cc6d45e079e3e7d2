// How a warp writes its 16 left rows of a tile: accumulators -> 2 KiB of shared memory -> 16 bytes per thread.
//
// Plain stores, not the copy engine: any stride and alignment of out, any m and n and accumulation take one path, and once
// issued nobody waits for them. A register of 8 columns goes to shared memory without bank conflicts; each row (swapped:
// each row of out) then leaves as whole 32-byte sectors.
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

template <class Out>
__device__ __forceinline__ Out* out_at(const Output& output, int i, int j) {
  return static_cast<Out*>(output.out.data) + i * output.out.stride[0] + j;
}

__device__ __forceinline__ f32 load_f32(const f32* from) { return *from; }
__device__ __forceinline__ f32 load_f32(const bf16* from) { return __uint_as_float(u32{from->bits} << 16); }

__device__ __forceinline__ float2 load_pair(const f32* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 load_pair(const bf16* from) {
  const u32 pair = *reinterpret_cast<const u32*>(from);
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
}

// total += out, in f32, in accumulator order: registers i and i + 1 are neighbours in a row, i + 2 is 8 rows below.
template <bool kSwapped, class Out, int kRight>
__device__ __forceinline__ void add_out(const Output& output, f32 (&total)[kRight / 2], int left_row, int right_row) {
  const int left = left_row + threadIdx.x % 32 / 4, right = right_row + threadIdx.x % 4 * 2;
  const bool whole = output.rows_are_aligned && right_row + kRight <= output.n;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if constexpr (kSwapped) {
      const Out* column = out_at<Out>(output, right, left + 8 * half);
#pragma unroll
      for (int i = 2 * half; i < kRight / 2; i += i % 2 == 0 ? 1 : 3) {
        const int ahead = i / 4 * 8 + i % 2;
        if (right + ahead < output.m && left + 8 * half < output.n) {
          total[i] = __fadd_rn(load_f32(column + ahead * output.out.stride[0]), total[i]);
        }
      }
    } else if (left + 8 * half < output.m) {
      const Out* row = out_at<Out>(output, left + 8 * half, right);
      if (whole) {
#pragma unroll
        for (int i = 2 * half; i < kRight / 2; i += 4) {
          const float2 pair = load_pair(row + i / 4 * 8);
          total[i] = __fadd_rn(pair.x, total[i]);
          total[i + 1] = __fadd_rn(pair.y, total[i + 1]);
        }
      } else {
#pragma unroll
        for (int i = 2 * half; i < kRight / 2; i += i % 2 == 0 ? 1 : 3) {
          const int ahead = i / 4 * 8 + i % 2;
          if (right + ahead < output.n) total[i] = __fadd_rn(load_f32(row + ahead), total[i]);
        }
      }
    }
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

// Where piece p of a chunk lies in shared memory, and where it goes. Not swapped: rows of 128 bytes, whose 16-byte pieces
// are exchanged by the row's number, so that the eight rows that a register of the warp spans lie in different banks.
// Swapped: the 16 left rows of a column lie side by side.
template <bool kSwapped, class Out, int kColumns>
struct Piece {
  static constexpr int kValues = 16 / sizeof(Out);
  static constexpr int kPerRow = (kSwapped ? 16 : kColumns) / kValues;  // of out
  static constexpr int kCount = 16 * kColumns / kValues;
  int offset, i, j;  // bytes; from the chunk's first row and column of out

  __device__ __forceinline__ explicit Piece(int p) : i(p / kPerRow), j(p % kPerRow * kValues) {
    offset = kSwapped ? p * 16 : i * 128 + (p % kPerRow ^ i % 8) * 16;
  }
};

// Writes a chunk that starts at out[i, j] from shared memory.
template <bool kSwapped, class Out, int kColumns>
__device__ __forceinline__ void write_chunk(const Output& output, const u8* staging, int i, int j) {
  using Place = Piece<kSwapped, Out, kColumns>;
  const int lane = threadIdx.x % 32;
  constexpr int kHeight = kSwapped ? kColumns : 16, kWidth = kSwapped ? 16 : kColumns;
  if (output.rows_are_aligned && i + kHeight <= output.m && j + kWidth <= output.n) {
#pragma unroll
    for (int p = 0; p < Place::kCount; p += 32) {
      const Place place(p + lane);
      *reinterpret_cast<uint4*>(out_at<Out>(output, i + place.i, j + place.j)) =
          *reinterpret_cast<const uint4*>(staging + place.offset);
    }
    return;
  }
#pragma unroll 1
  for (int p = lane; p < Place::kCount; p += 32) {
    const Place place(p);
    const int columns = output.n - j - place.j;
    if (i + place.i >= output.m) continue;
    Out* to = out_at<Out>(output, i + place.i, j + place.j);
    if (output.rows_are_aligned && columns >= Place::kValues) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(staging + place.offset);
    } else {
#pragma unroll 1
      for (int v = 0; v < Place::kValues && v < columns; ++v) to[v] = reinterpret_cast<const Out*>(staging + place.offset)[v];
    }
  }
}

// Columns of the tile from right_row on, kColumns of them; total is the first one's register.
template <bool kSwapped, class Out, int kColumns>
__device__ __forceinline__ void store_chunk(const Output& output, const f32* total, u8* staging, int left_row,
                                            int right_row) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int row = lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2;
    if constexpr (kSwapped) {
      put_one(staging + (column * 16 + row) * sizeof(Out), total[i], Out{});
      put_one(staging + ((column + 1) * 16 + row) * sizeof(Out), total[i + 1], Out{});
    } else {
      const int byte = column * sizeof(Out);
      put_pair(staging + row * 128 + ((byte / 16 ^ row % 8) * 16 + byte % 16), total[i], total[i + 1], Out{});
    }
  }
  __syncwarp();
  write_chunk<kSwapped, Out, kColumns>(output, staging, kSwapped ? right_row : left_row, kSwapped ? left_row : right_row);
  __syncwarp();
}

template <bool kSwapped, class Out, int kRight>
__device__ __forceinline__ void store_as(const Output& output, f32 (&total)[kRight / 2], u8* staging, int left_row,
                                         int right_row) {
  constexpr int kWidth = 128 / sizeof(Out);  // columns that 2 KiB hold
  constexpr int kRest = kRight % kWidth, kWhole = kRight - kRest;
  if (output.accumulate) add_out<kSwapped, Out, kRight>(output, total, left_row, right_row);
#pragma unroll
  for (int column = 0; column < kWhole; column += kWidth) {
    store_chunk<kSwapped, Out, kWidth>(output, total + column / 2, staging, left_row, right_row + column);
  }
  if constexpr (kRest != 0) {
    store_chunk<kSwapped, Out, kRest>(output, total + kWhole / 2, staging, left_row, right_row + kWhole);
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
