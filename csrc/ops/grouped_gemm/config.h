// Which tile grouped_gemm takes on sm_90a (cuda/gemm_config.h): by the rows that an expert has on average, since the
// host does not know how many each one has. Every variant adds in the same order, so the choice never shows in the
// result.
//
// An expert with more rows than a tile takes several; they follow one another, so that its weights come from the L2
// cache. Slabs of 64 rows beyond an expert's are not multiplied: a tile of 128 or 256 rows wastes no more than one
// of 64.
#pragma once

#include "cuda/gemm_config.h"

namespace glm5::grouped_gemm_sm90 {

using cuda::Schedule;

// As in gemm and fp8_gemm, whose comments have the clocks. Few rows: weights stream.
constexpr cuda::GemmVariant kPlainVariants[] = {
    {Schedule::swap_ab, 64, 16, 1, 20},
    {Schedule::swap_ab, 64, 64, 1, 12},
    {Schedule::rows, 128, 128, 1, 6},
    {Schedule::rows, 128, 256, 2, 4},
};
constexpr cuda::GemmVariant kFp8Variants[] = {
    {Schedule::swap_ab, 64, 16, 1, 20},
    {Schedule::swap_ab, 64, 64, 1, 12},
    {Schedule::rows, 128, 128, 1, 6},
    {Schedule::rows, 256, 128, 2, 4},
};
constexpr int kVariantCount = 4;
constexpr cuda::GemmVariant kWgradVariant{Schedule::rows, 128, 128, 1, 6};

// Rows and experts > 0. Up to 16 rows for each expert one narrow tile serves most of them; from 96 on a tile of weights
// is used for enough rows to be wgmma's N operand; from 192 on two blocks share what they load.
constexpr int choose_variant(i64 rows, i64 experts, int sms) {
  const i64 mean = ceil_div(rows, experts);
  const int variant = mean <= 12 ? 0 : mean < 96 ? 1 : mean < 192 ? 2 : 3;
  return sms < 2 ? static_cast<int>(smaller(variant, 2)) : variant;
}

// The rows and columns of out that a cluster takes at a time. `cluster_rows`: its blocks lie along the rows.
struct ClusterTile {
  int rows, columns;
};
constexpr ClusterTile cluster_tile(const cuda::GemmVariant& variant, bool cluster_rows) {
  if (variant.schedule == Schedule::swap_ab) return {variant.right, variant.left};
  return {variant.left * (cluster_rows ? variant.cluster : 1), variant.right * (cluster_rows ? 1 : variant.cluster)};
}

// Blocks: no more than the chip holds, nor than there can be tiles.
constexpr int grid_of(const cuda::GemmVariant& variant, const ClusterTile& tile, i64 rows, i64 experts, i64 n,
                      int sms) {
  const i64 row_tiles = ceil_div(rows, tile.rows) + smaller(rows, experts);
  return static_cast<int>(smaller(row_tiles * ceil_div(n, tile.columns), sms / variant.cluster) * variant.cluster);
}

}  // namespace glm5::grouped_gemm_sm90
