// What the forward kernels of grouped_gemm share: which experts there are, and what becomes of the other rows.
#pragma once

#include "cuda/expert_tiles.cuh"
#include "cuda/tile_store.cuh"
#include "ops/grouped_gemm/launch_sm90.h"

namespace glm5::grouped_gemm_sm90 {

// What a kernel needs beside the arguments of one product.
struct ExpertArgs {
  cuda::Experts experts;
  bool clear_rest;
  int n;
};

inline ExpertArgs expert_args(const GroupedGemmArgs& args) {
  return {{args.offsets.data, static_cast<int>(args.experts()), static_cast<int>(args.out.shape[0]),
           static_cast<int>(args.max_rows)},
          args.clear_rest,
          static_cast<int>(args.w.shape[1])};
}

// The rows of a tile of an expert, and its place among the columns.
struct TileRows {
  int expert, row, row_end, column;
};

template <int kRows, int kColumns>
__device__ __forceinline__ TileRows tile_rows(const ExpertArgs& args, int tile) {
  const int columns = (args.n + kColumns - 1) / kColumns;
  const cuda::ExpertTile at = cuda::expert_of_tile(args.experts, kRows, columns, tile);
  if (at.expert < 0) return {-1, 0, at.end, 0};
  const int row_tiles = (at.end - at.begin + kRows - 1) / kRows;
  const int column = at.tile / row_tiles;
  return {at.expert, at.begin + (at.tile - column * row_tiles) * kRows, at.end, column * kColumns};
}

// By all threads of all blocks, whole warps.
__device__ __forceinline__ void clear_rest(const ExpertArgs& args, const cuda::TileOut& out) {
  if (!args.clear_rest) return;
  const int last = cuda::expert_of_tile(args.experts, 1, 0, 0).end;  // no expert has a tile
  const int bytes = out.is_f32 ? 4 : 2, warps = blockDim.x / 32;
  cuda::clear_unowned(args.experts, static_cast<u8*>(out.data), out.row_stride * bytes, args.n * bytes, last,
                      blockIdx.x * warps + threadIdx.x / 32, gridDim.x * warps);
}

inline cuda::TileOut out_of(const FloatTensor<2>& out, bool accumulate) {
  const bool is_f32 = out.dtype == Float::f32;
  return {.data = out.data,
          .row_stride = out.stride[0],
          .m = static_cast<int>(out.shape[0]),
          .n = static_cast<int>(out.shape[1]),
          .is_f32 = is_f32,
          .accumulate = accumulate,
          .rows_are_aligned = reinterpret_cast<std::uintptr_t>(out.data) % 16 == 0 &&
                              (out.shape[0] == 1 || out.stride[0] * (is_f32 ? 4 : 2) % 16 == 0)};
}

}  // namespace glm5::grouped_gemm_sm90
