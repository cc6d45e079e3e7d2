// What the choices of a tile for fp8_gemm and gemm on sm_90a share. Without CUDA: launcher, tests and describe use it.
//
// A tile is `left` rows of wgmma's M operand times `right` rows of its N operand. Two schedules:
//   rows      left = rows of a, right = rows of b.
//   swap_ab   left = rows of b, right = rows of a: with few rows of a, the 64 rows that a wgmma always multiplies are
//             weights, and the tile is as narrow as m. The tile is written transposed.
#pragma once

#include <string>

#include "core/tensor.h"

namespace glm5::cuda {

enum class Schedule : int { rows, swap_ab };

struct GemmVariant {
  Schedule schedule;
  int left, right;
  int cluster;  // blocks side by side that share one operand's tile by multicast
  int stages;

  constexpr int consumer_warpgroups() const { return left == 64 ? 1 : 2; }
  constexpr int consumer_threads() const { return 128 * consumer_warpgroups(); }
  // A lone consumer warpgroup has registers enough and takes one warp as producer; with two, the producer is a whole
  // warpgroup, because only warpgroups can hand registers over.
  constexpr int threads() const { return consumer_threads() + (consumer_warpgroups() == 1 ? 32 : 128); }
};

constexpr int kStepBytes = 128;  // a row of a stage
// Each consumer warp turns 2 KiB of its tile at a time from accumulator order into rows.
constexpr int kStagingBytes = 2048;

// Shared memory of a variant whose stages have `other_bytes` beside the two operands and the two barriers.
constexpr int gemm_smem_bytes(const GemmVariant& variant, int other_bytes) {
  const int stage = (variant.left + variant.right) * kStepBytes + other_bytes + 16;
  return static_cast<int>(round_up(variant.stages * stage + variant.consumer_threads() / 32 * kStagingBytes, 1024));
}

// e4m3: the scales of one stage, one per row of the operand, or (per block) at most three; 128-byte slots for the copy
// engine.
constexpr int scale_slot_bytes(int rows, bool per_row) {
  return per_row ? static_cast<int>(round_up(rows * 4, 128)) : 128;
}

constexpr int fp8_smem_bytes(const GemmVariant& variant, bool b_scales_per_row) {
  const bool swapped = variant.schedule == Schedule::swap_ab;
  return gemm_smem_bytes(variant, scale_slot_bytes(variant.left, !swapped || b_scales_per_row) +
                                      scale_slot_bytes(variant.right, swapped || b_scales_per_row));
}

struct GemmConfig {
  int variant;  // index in kVariants
  Schedule schedule;
  int tile_m, tile_n, tile_k;
  int stages, cluster, threads, smem_bytes;
  i64 left_tiles, right_tiles;  // those along which clusters lie are rounded up to whole clusters
  int band;                     // of TileGrid
  int grid;                     // blocks
};

// How a variant runs a problem of so many tiles and clusters.
constexpr GemmConfig gemm_config(const GemmVariant& variant, int index, int tile_k, int smem_bytes, i64 left_tiles,
                                 i64 right_tiles, i64 clusters, i64 band, int sms) {
  const bool swapped = variant.schedule == Schedule::swap_ab;
  return {.variant = index,
          .schedule = variant.schedule,
          .tile_m = swapped ? variant.right : variant.left,
          .tile_n = swapped ? variant.left : variant.right,
          .tile_k = tile_k,
          .stages = variant.stages,
          .cluster = variant.cluster,
          .threads = variant.threads(),
          .smem_bytes = smem_bytes,
          .left_tiles = left_tiles,
          .right_tiles = right_tiles,
          .band = static_cast<int>(band),
          .grid = static_cast<int>(smaller(clusters, sms / variant.cluster) * variant.cluster)};
}

// The variant of fewest clocks among those that can run; the first of equals, which has the smaller tile.
template <int Count, class Variant, class CanRun, class Clocks>
constexpr int best_variant(const Variant (&variants)[Count], const CanRun& can_run, const Clocks& clocks) {
  int best = -1;
  i64 best_clocks = 0;
  for (int i = 0; i < Count; ++i) {
    if (!can_run(variants[i])) continue;
    const i64 estimate = clocks(variants[i]);
    if (best < 0 || estimate < best_clocks) {
      best = i;
      best_clocks = estimate;
    }
  }
  return best;
}

inline std::string describe(const GemmConfig& config) {
  const auto number = [](int value) { return std::to_string(value); };
  return std::string(config.schedule == Schedule::rows ? "rows" : "swap_ab") + " tile " + number(config.tile_m) + "x" +
         number(config.tile_n) + "x" + number(config.tile_k) + " stages " + number(config.stages) + " cluster " +
         number(config.cluster) + " threads " + number(config.threads) + " smem " + number(config.smem_bytes) +
         " grid " + number(config.grid);
}

}  // namespace glm5::cuda
