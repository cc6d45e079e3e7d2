// Which tile fp8_gemm takes on sm_90a: a pure function of the problem, without CUDA, for launcher, tests and describe.
//
// A tile is `left` rows of wgmma's M operand times `right` rows of its N operand. Two schedules:
//   rows      left = rows of a, right = rows of b.
//   swap_ab   left = rows of b, right = rows of a: with few rows of a, the 64 rows that a wgmma always multiplies are
//             weights, and the tile is as narrow as m. The tile is written transposed.
// Every variant adds in the same order, so the choice never shows in the result.
//
// Why k is never split. The sum over k groups is a chain of fused multiply-adds, so a split would change the bits or
// wait for its predecessor. It is not needed either: a 64-row weight tile gives 64 busy SMs at n = 4096 and 96 at
// n = 6144, and one SM takes 64 B/clock = 112 GB/s into shared memory, so that 39 of them already draw 4.3 TB/s.
// Narrower GEMMs are small: n = 2624, k = 6144 has 41 tiles; each takes 48 steps of 10 KiB, 160 clocks of filling each.
#pragma once

#include <string>

#include "core/glm5.h"

namespace glm5::fp8_gemm_sm90 {

enum class Schedule : int { rows, swap_ab };

struct Variant {
  Schedule schedule;
  int left, right;
  int cluster;  // blocks side by side along `right` that share one left tile by multicast
  int stages;
  bool per_row;  // also built for b scales per row

  constexpr int consumer_warpgroups() const { return left == 64 ? 1 : 2; }
  constexpr int consumer_threads() const { return 128 * consumer_warpgroups(); }
  // A lone consumer warpgroup has registers enough and takes one warp as producer; with two, the producer is a whole
  // warpgroup, because only warpgroups can hand registers over.
  constexpr int threads() const { return consumer_threads() + (consumer_warpgroups() == 1 ? 32 : 128); }
};

// 128 of k at a time; a row of a stage is 128 bytes.
constexpr int kStepBytes = static_cast<int>(kFp8Group);
// Each consumer warp turns 2 KiB of its tile at a time from accumulator order into rows.
constexpr int kStagingBytes = 2048;

// Stages fill what the 227 KiB leave beside 2 KiB per consumer warp. Per SM and clock there are 4096 multiply-adds; 64
// B from the L2 into shared memory, and 46 B when all 132 SMs ask; 128 B in and out of shared memory, of which a wgmma
// of 64 x N x 32 reads 2 KiB of the left and 32 N bytes of the right operand. The comments give, per step: clocks of
// multiplication, clocks of shared memory, and the bytes per clock asked of the L2. Sharing the left tile in a cluster
// pays where the L2 would else be the narrowest of the three, at 128 left rows or more.
constexpr Variant kVariants[] = {
    // Weights stream, tokens stay in L2: about 200 KiB in flight per SM.
    {Schedule::swap_ab, 64, 16, 1, 20, false},
    {Schedule::swap_ab, 64, 32, 1, 16, false},
    {Schedule::swap_ab, 64, 64, 1, 12, false},
    {Schedule::swap_ab, 64, 128, 1, 8, false},  //  256,  384 clocks, 64 B: where tiles of 128 x 128 would be too few
    {Schedule::rows, 128, 96, 2, 7, false},     //  384,  544 clocks, 38 B: 128 tiles at 256 x 6144
    {Schedule::rows, 128, 128, 1, 6, true},     //  512,  640 clocks, 51 B: m <= 128 with wide n; odd counts of tiles
    {Schedule::rows, 128, 128, 2, 6, false},    //  512,  640 clocks, 38 B
    {Schedule::rows, 128, 176, 2, 5, false},    //  704,  784 clocks, 39 B: n = 2624 is 14.9 of them
    {Schedule::rows, 128, 192, 2, 5, true},     //  768,  832 clocks, 39 B
    {Schedule::rows, 256, 128, 2, 4, true},     // 1024, 1152 clocks, 28 B
};
constexpr int kVariantCount = sizeof(kVariants) / sizeof(kVariants[0]);

// Scales of one stage: one per row of the operand, or (per block) at most three; 128-byte slots for the copy engine.
constexpr int scale_slot_bytes(int rows, bool per_row) {
  return per_row ? static_cast<int>(round_up(rows * 4, 128)) : 128;
}

constexpr int smem_bytes(const Variant& variant, bool per_row) {
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const int stage = (variant.left + variant.right) * kStepBytes + scale_slot_bytes(variant.left, !swapped || per_row) +
                    scale_slot_bytes(variant.right, swapped || per_row) + 16;
  return static_cast<int>(round_up(variant.stages * stage + variant.consumer_threads() / 32 * kStagingBytes, 1024));
}

struct Config {
  int variant;  // index in kVariants
  Schedule schedule;
  int tile_m, tile_n, tile_k;
  int stages, cluster, threads, smem_bytes;
  i64 left_tiles, right_tiles;  // right_tiles rounded up to whole clusters
  int band;                     // of TileGrid
  int grid;                     // blocks
};

// Ranks variants: clocks on an H200 (132 SMs, 1.755 GHz, 4.3 TB/s) if every unit ran at its peak. Not yet measured.
constexpr i64 estimated_clocks(const Variant& variant, i64 m, i64 n, i64 k, int sms) {
  constexpr i64 kMultiplyAdds = 4096, kSmemBytes = 128, kFillBytes = 64;  // per SM and clock
  constexpr i64 kL2Bytes = 6154, kMemoryBytes = 2450;                     // per clock, all SMs
  constexpr i64 kLeastStep = 200;  // barrier, four wgmma one after the other, promotion
  constexpr i64 kEpilogue = 300;
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_rows = swapped ? n : m, right_rows = swapped ? m : n;
  const i64 left = variant.left, right = variant.right;
  const i64 clusters = ceil_div(left_rows, left) * ceil_div(right_rows, right * variant.cluster);
  const i64 at_once = larger(sms / variant.cluster, 1);
  const i64 active = smaller(clusters, at_once) * variant.cluster;
  const i64 slabs = ceil_div(smaller(left_rows, left), 64);
  const i64 multiply = slabs * 64 * right * kStepBytes / kMultiplyAdds;
  const i64 smem = (slabs * 4 * (2048 + 32 * right) + (left + right) * kStepBytes) / kSmemBytes;
  const i64 fill = (left + right) * kStepBytes / kFillBytes;
  const i64 l2 =
      (smaller(left_rows, left) / variant.cluster + smaller(right_rows, right)) * kStepBytes * active / kL2Bytes;
  const i64 step = larger(larger(larger(multiply, smem), larger(fill, l2)), kLeastStep);
  const i64 tile = ceil_div(k, kFp8Group) * step + left * right / 32 + kEpilogue;
  const i64 memory = (m * k + n * k + 2 * m * n) / kMemoryBytes;
  const i64 chip = ceil_div(clusters, at_once) * tile;
  return larger(chip, memory) + chip / 16;  // where all wait for memory, the variant with least to do besides
}

constexpr bool can_run(const Variant& variant, bool b_scales_per_row, int sms) {
  return (variant.per_row || !b_scales_per_row) && variant.cluster <= sms;
}

// How a given variant runs a problem. m, n, k > 0.
constexpr Config config_of(int variant_index, i64 m, i64 n, bool b_scales_per_row = false, int sms = 132) {
  const Variant& variant = kVariants[variant_index];
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_tiles = ceil_div(swapped ? n : m, variant.left);
  const i64 right_tiles = round_up(ceil_div(swapped ? m : n, variant.right), variant.cluster);
  const i64 clusters = smaller(left_tiles * (right_tiles / variant.cluster), sms / variant.cluster);
  // Bands of about 2048 left rows: 132 tiles at once then span about 2048 rows of either operand.
  const i64 band = smaller(2048 / variant.left, left_tiles);
  return {.variant = variant_index,
          .schedule = variant.schedule,
          .tile_m = swapped ? variant.right : variant.left,
          .tile_n = swapped ? variant.left : variant.right,
          .tile_k = kStepBytes,
          .stages = variant.stages,
          .cluster = variant.cluster,
          .threads = variant.threads(),
          .smem_bytes = smem_bytes(variant, b_scales_per_row),
          .left_tiles = left_tiles,
          .right_tiles = right_tiles,
          .band = static_cast<int>(band),
          .grid = static_cast<int>(clusters * variant.cluster)};
}

// m, n, k > 0.
constexpr Config choose_config(i64 m, i64 n, i64 k, bool b_scales_per_row = false, int sms = 132) {
  int best = -1;
  i64 best_clocks = 0;
  for (int i = 0; i < kVariantCount; ++i) {
    if (!can_run(kVariants[i], b_scales_per_row, sms)) continue;
    const i64 clocks = estimated_clocks(kVariants[i], m, n, k, sms);
    if (best < 0 || clocks < best_clocks) {  // the first of equals: the smaller tile
      best = i;
      best_clocks = clocks;
    }
  }
  return config_of(best, m, n, b_scales_per_row, sms);
}

inline std::string describe(const Config& config) {
  const auto number = [](int value) { return std::to_string(value); };
  return std::string(config.schedule == Schedule::rows ? "rows" : "swap_ab") + " tile " + number(config.tile_m) + "x" +
         number(config.tile_n) + "x" + number(config.tile_k) + " stages " + number(config.stages) + " cluster " +
         number(config.cluster) + " threads " + number(config.threads) + " smem " + number(config.smem_bytes) +
         " grid " + number(config.grid);
}

}  // namespace glm5::fp8_gemm_sm90
