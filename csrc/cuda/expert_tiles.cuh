// Which tile of which expert is next: for products whose rows belong to experts, by bounds that only the device knows.
//
// Tiles are numbered through all experts; those of one expert go down its rows first, so that the blocks that run at
// one time share its weights in the L2 cache. A whole warp finds the expert of a tile, 32 of them at a time. It keeps
// nothing from one tile to the next: registers are dearer than the search.
#pragma once

#include "core/tensor.h"

namespace glm5::cuda {

struct Experts {
  const i32* bounds;  // offsets [count + 1], or the masked layout's counts [count]
  int count;
  int rows;      // of out
  int max_rows;  // of the masked layout, or 0
};

struct ExpertTile {
  int expert;      // or -1: there is no such tile
  int begin, end;  // the expert's rows; without an expert, where the last one's end
  int tile;        // within the expert
};

__device__ __forceinline__ int held_within(int value, int most) { return min(max(value, 0), most); }

__device__ __forceinline__ int inclusive_max(int value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) value = max(value, __shfl_up_sync(~0u, value, distance));
  return value;
}

__device__ __forceinline__ int inclusive_sum(int value) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int before = __shfl_up_sync(~0u, value, distance);
    if (threadIdx.x % 32 >= distance) value += before;
  }
  return value;
}

// By a whole warp. Each expert has `columns` tiles for every tile_rows of its rows.
__device__ __forceinline__ ExpertTile expert_of_tile(const Experts& experts, int tile_rows, int columns, int tile) {
  const int lane = threadIdx.x % 32;
  int last = experts.max_rows > 0 ? 0 : held_within(__ldg(experts.bounds), experts.rows);
#pragma unroll 1
  for (int first = 0; first < experts.count; first += 32) {
    const bool exists = first + lane < experts.count;
    const i32* bound = experts.bounds + (exists ? first + lane : 0);
    int begin, end;
    if (experts.max_rows > 0) {
      begin = exists ? (first + lane) * experts.max_rows : 0;
      end = begin + (exists ? held_within(__ldg(bound), experts.max_rows) : 0);
    } else {
      end = max(last, inclusive_max(exists ? held_within(__ldg(bound + 1), experts.rows) : 0));
      begin = __shfl_up_sync(~0u, end, 1);
      if (lane == 0) begin = last;
    }
    const int tiles = exists ? (end - begin + tile_rows - 1) / tile_rows * columns : 0;
    const int through = inclusive_sum(tiles);
    const unsigned reached = __ballot_sync(~0u, tile < through);
    if (reached != 0) {
      const int owner = __ffs(reached) - 1;
      return {first + owner, __shfl_sync(~0u, begin, owner), __shfl_sync(~0u, end, owner),
              tile - __shfl_sync(~0u, through - tiles, owner)};
    }
    tile -= __shfl_sync(~0u, through, 31);
    last = __shfl_sync(~0u, end, 31);
  }
  return {-1, last, last, 0};
}

// Zeros in the rows of out that no expert owns, by some warps of all blocks; `last` is where the last expert's rows
// end.
__device__ __forceinline__ void clear_unowned(const Experts& experts, u8* out, i64 stride_bytes, int row_bytes,
                                              int last, int warp, int warps) {
  const int first = experts.max_rows > 0 ? 0 : held_within(__ldg(experts.bounds), experts.rows);
  for (int row = warp; row < experts.rows; row += warps) {
    bool is_owned = row >= first && row < last;
    if (experts.max_rows > 0) {
      const int expert = row / experts.max_rows;
      is_owned = row - expert * experts.max_rows < __ldg(experts.bounds + expert);
    }
    if (is_owned) continue;
    for (int i = 2 * (threadIdx.x % 32); i < row_bytes; i += 64) {
      *reinterpret_cast<u16*>(out + row * stride_bytes + i) = 0;
    }
  }
}

}  // namespace glm5::cuda
