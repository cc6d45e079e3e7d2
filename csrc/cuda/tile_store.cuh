// How a warp writes its 16 rows of an accumulator tile: registers -> 2 KiB of shared memory -> 16 bytes per thread.
//
// Plain stores, not the copy engine: any stride and alignment of out, any m and n and accumulation take one path, and
// once issued nobody waits for them. Values pass shared memory as what is written: bf16, or f32 where out is f32 or is
// still to be added. A row (transposed: a column) leaves as whole 32-byte sectors.
#pragma once

#include "core/tensor.h"
#include "cuda/ptx/cvt.cuh"

namespace glm5::cuda {

constexpr int kTileStoreBytes = 2048;  // of shared memory, per warp

// Where the tile goes: bf16 or f32 [m, n], unit stride along n.
struct TileOut {
  void* data;
  i64 row_stride;
  int m, n;
  bool is_f32, accumulate;
  bool rows_are_aligned;  // every row starts at a multiple of 16 bytes
};

namespace tile_store {

__device__ __forceinline__ f32 load_f32(const f32* from) { return *from; }
__device__ __forceinline__ f32 load_f32(const bf16* from) { return __uint_as_float(u32{from->bits} << 16); }

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

// Four values of row i from column j on; what lies beyond the edge is not read and stays as it is.
__device__ __forceinline__ void load_four(f32 (&values)[4], const f32* from, bool vector, int live) {
  if (vector) {
    const float4 loaded = *reinterpret_cast<const float4*>(from);
    values[0] = loaded.x, values[1] = loaded.y, values[2] = loaded.z, values[3] = loaded.w;
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    if (v < live) values[v] = from[v];
  }
}
__device__ __forceinline__ void load_four(f32 (&values)[4], const bf16* from, bool vector, int live) {
  if (vector) {
    const uint2 loaded = *reinterpret_cast<const uint2*>(from);
    values[0] = __uint_as_float(loaded.x << 16), values[1] = __uint_as_float(loaded.x & 0xffff0000);
    values[2] = __uint_as_float(loaded.y << 16), values[3] = __uint_as_float(loaded.y & 0xffff0000);
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    if (v < live) values[v] = load_f32(from + v);
  }
}

// Up to `live` values; words hold them as Out.
template <class Out, int kWords>
__device__ __forceinline__ void write(Out* to, const u32 (&words)[kWords], bool vector, int live) {
  if (vector) {
    if constexpr (kWords == 4) *reinterpret_cast<uint4*>(to) = {words[0], words[1], words[2], words[3]};
    if constexpr (kWords == 2) *reinterpret_cast<uint2*>(to) = {words[0], words[1]};
    return;
  }
#pragma unroll
  for (int v = 0; v < kWords * 4 / static_cast<int>(sizeof(Out)); ++v) {
    if (v >= live) break;
    if constexpr (sizeof(Out) == 4) {
      reinterpret_cast<u32*>(to)[v] = words[v];
    } else {
      reinterpret_cast<u16*>(to)[v] = static_cast<u16>(words[v / 2] >> (v % 2 * 16));
    }
  }
}

// One piece of 16 staged bytes.
template <class Staged, class Out>
__device__ __forceinline__ void write_piece(Out* to, uint4 piece, const f32 (&old)[4], bool accumulate, bool vector,
                                            int live) {
  u32 words[] = {piece.x, piece.y, piece.z, piece.w};
  if constexpr (sizeof(Staged) == 4) {
    if (accumulate) {
#pragma unroll
      for (int v = 0; v < 4; ++v) words[v] = __float_as_uint(__fadd_rn(old[v], __uint_as_float(words[v])));
    }
  }
  if constexpr (sizeof(Staged) == sizeof(Out)) {
    write<Out>(to, words, vector, live);
  } else {
    const u32 pairs[] = {ptx::cvt_rn_bf16x2_f32(__uint_as_float(words[1]), __uint_as_float(words[0])),
                         ptx::cvt_rn_bf16x2_f32(__uint_as_float(words[3]), __uint_as_float(words[2]))};
    write<Out>(to, pairs, vector, live);
  }
}

// kColumns of the tile's columns. In shared memory a line is one of the 16 rows, 128 bytes long, or, transposed, one
// column of 16 values. The 16-byte pieces of a row are exchanged by its number, so that the rows that a store spans (8
// of 32 lanes with bf16, 4 of 16 lanes with f32) lie in different banks; transposed stores, for few columns, may meet.
template <bool kTransposed, class Staged, class Out, int kColumns>
__device__ __forceinline__ void store_chunk(const TileOut& out, const f32* total, u8* staging, int row, int column) {
  constexpr int kSize = sizeof(Staged), kValues = 16 / kSize;
  constexpr int kPieces = (kTransposed ? 16 : kColumns) / kValues;  // of a line
  constexpr int kRounds = (kTransposed ? kColumns : 16) * kPieces / 32;
  static_assert(kRounds * 32 == (kTransposed ? kColumns : 16) * kPieces && kColumns * kSize <= 128);
  const int lane = threadIdx.x % 32;
  const auto exchanged = [](int line, int piece) { return piece ^ (kSize == 4 ? line % 4 * 2 : line % 8); };

  Out* to[kRounds];
  int live[kRounds];  // how many values of the piece lie within out
  bool vector[kRounds];
  f32 old[kRounds][4] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int line = (32 * round + lane) / kPieces, first = (32 * round + lane) % kPieces * kValues;
    const int i = kTransposed ? column + line : row + line, j = kTransposed ? row + first : column + first;
    to[round] = static_cast<Out*>(out.data) + i * out.row_stride + j;
    live[round] = i < out.m ? out.n - j : 0;
    vector[round] = out.rows_are_aligned && live[round] >= kValues;
    if constexpr (kSize == 4) {
      if (out.accumulate) load_four(old[round], to[round], vector[round], live[round]);
    }
  }

#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 2) {
    const int r = lane / 4 + i / 2 % 2 * 8, c = i / 4 * 8 + lane % 4 * 2;
    if constexpr (kTransposed) {
      put_one(staging + (c * 16 + r) * kSize, total[i], Staged{});
      put_one(staging + (c * 16 + 16 + r) * kSize, total[i + 1], Staged{});
    } else {
      put_pair(staging + r * 128 + exchanged(r, c * kSize / 16) * 16 + c * kSize % 16, total[i], total[i + 1],
               Staged{});
    }
  }
  __syncwarp();
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int line = (32 * round + lane) / kPieces, piece = (32 * round + lane) % kPieces;
    const u8* from = staging + (kTransposed ? 32 * round + lane : line * 8 + exchanged(line, piece)) * 16;
    write_piece<Staged, Out>(to[round], *reinterpret_cast<const uint4*>(from), old[round], out.accumulate,
                             vector[round], live[round]);
  }
  __syncwarp();
}

template <bool kTransposed, class Staged, class Out, int kColumns>
__device__ __forceinline__ void store_as(const TileOut& out, const f32 (&total)[kColumns / 2], u8* staging, int row,
                                         int column) {
  constexpr int kWidth = 128 / sizeof(Staged), kRest = kColumns % kWidth;
#pragma unroll
  for (int first = 0; first + kWidth <= kColumns; first += kWidth) {
    store_chunk<kTransposed, Staged, Out, kWidth>(out, total + first / 2, staging, row, column + first);
  }
  if constexpr (kRest != 0) {
    constexpr int kFirst = kColumns - kRest;
    store_chunk<kTransposed, Staged, Out, kRest>(out, total + kFirst / 2, staging, row, column + kFirst);
  }
}

}  // namespace tile_store

// out[row + r, column + c] = total (+ out), for the warp's rows r < 16 and columns c < kColumns of a wgmma accumulator;
// transposed: out[column + c, row + r]. Register i of a lane is row lane / 4 + 8 (i / 2 % 2) and column
// 8 (i / 4) + 2 (lane % 4) + i % 2. staging: kTileStoreBytes of the warp's own, 16-byte aligned.
template <bool kTransposed, int kColumns>
__device__ __forceinline__ void store_tile(const TileOut& out, const f32 (&total)[kColumns / 2], u8* staging, int row,
                                           int column) {
  if (out.is_f32) {
    tile_store::store_as<kTransposed, f32, f32, kColumns>(out, total, staging, row, column);
  } else if (out.accumulate) {
    tile_store::store_as<kTransposed, f32, bf16, kColumns>(out, total, staging, row, column);
  } else {
    tile_store::store_as<kTransposed, bf16, bf16, kColumns>(out, total, staging, row, column);
  }
}

}  // namespace glm5::cuda
