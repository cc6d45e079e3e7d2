// What quantize_fp8 and dequantize_fp8 share: the tile in which 128x1 groups turn.
#pragma once

#include "core/fp8.h"
#include "core/fp8_groups.h"
#include "cuda/fp8_pieces.cuh"

namespace glm5::cuda {

constexpr int kTurnColumns = 64;  // of a tile that turns 128 rows

// Bytes of a tile, turned: a word holds 4 rows of a column. Its place is moved by the column's piece, so that the 8
// pieces x 4 words that a warp touches lie in 32 banks; 4 words stay together, for accesses of 16 bytes.
struct TurnedBytes {
  u32 words[kTurnColumns][kFp8Group / 4];
  __device__ __forceinline__ u32& at(u32 column, u32 word) { return words[column][word ^ (column / kPiece * 4)]; }
  __device__ __forceinline__ uint4& four_at(u32 column, u32 word) {
    return *reinterpret_cast<uint4*>(&at(column, word));
  }
};

// rows_of_group(), found by all threads of a block: halving would wait for memory once per step.
template <int kThreads>
__device__ __forceinline__ RowRange rows_of_group_by_block(const Tensor<const i32, 1>& offsets, i64 rows, i64 group) {
  if (!offsets.exists()) return rows_of_group(offsets, rows, group);
  const i64 experts = offsets.shape[0] - 1;
  i64 begun = 0;
  for (i64 first = 0; first < experts; first += kThreads) {
    const i64 expert = first + threadIdx.x;
    begun += __syncthreads_count(expert < experts && first_group_of(offsets, rows, expert) <= group);
  }
  return rows_of_expert_group(offsets, rows, larger(begun - 1, 0), group);
}

}  // namespace glm5::cuda
