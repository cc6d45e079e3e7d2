// Which tile gemm takes on sm_90a with bf16 operands: a pure function of the problem, without CUDA.
//
// A tile is `left` rows of wgmma's M operand times `right` rows of its N operand. Two schedules:
//   rows      left = rows of a, right = rows of b.
//   swap_ab   left = rows of b, right = rows of a: with few rows of a, the 64 rows that a wgmma always multiplies are
//             weights, and the tile is as narrow as m. The tile is written transposed.
// Every variant adds in the same order, so the choice never shows in the result. k is never split: the sum is one
// chain.
#pragma once

#include <string>

#include "core/tensor.h"

namespace glm5::gemm_sm90 {

enum class Schedule : int { rows, swap_ab };

struct Variant {
  Schedule schedule;
  int left, right;
  int cluster;  // blocks side by side along `left` that share one right tile by multicast
  int stages;
  bool transposed_a;  // also built for a with unit stride along m, as the gradient of a weight has it

  constexpr int consumer_warpgroups() const { return left / 64; }
  constexpr int consumer_threads() const { return 128 * consumer_warpgroups(); }
  // A lone consumer warpgroup has registers enough and takes one warp as producer; with two, the producer is a whole
  // warpgroup, because only warpgroups can hand registers over.
  constexpr int threads() const { return consumer_threads() + (consumer_warpgroups() == 1 ? 32 : 128); }
};

// 64 of k at a time; a row of a stage is 128 bytes.
constexpr int kStepK = 64, kStepBytes = 128;
constexpr int kStagingBytes = 2048;  // per consumer warp, to turn the tile from accumulator order into rows

// Stages fill what the 227 KiB leave beside the staging. Calculated per SM and clock, not measured: 2048 multiply-adds;
// 128 B through shared memory, wgmma's reads and the copy engine's writes together; 46 B of what the L2 gives when all
// 132 ask. Per step: the clocks of the multiplication, those of shared memory, and the bytes per clock then asked of
// the L2.
//
// 128 x 256 and not 256 x 128 is the large tile: its wgmma reads 10 KiB per 128 clocks, which with the copy engine's
// writes is just what shared memory serves, while two wgmma of 64 x 128 read 12 KiB. Sharing the right tile, the wide
// one, brings it to 32 B per clock of L2. It holds 128 accumulators per thread; a second set, to store one tile while
// multiplying the next, does not fit, but the two warpgroups may drift apart by the length of the ring.
constexpr Variant kVariants[] = {
    // Weights stream, tokens stay in L2: about 200 KiB in flight per SM, across tiles.
    {Schedule::swap_ab, 64, 16, 1, 20, false},  //   32, 160 clocks, 64 B
    {Schedule::swap_ab, 64, 32, 1, 16, false},  //   64, 192 clocks, 64 B
    {Schedule::swap_ab, 64, 64, 1, 12, false},  //  128, 256 clocks, 64 B
    {Schedule::swap_ab, 64, 128, 1, 8, false},  //  256, 384 clocks, 64 B
    {Schedule::rows, 128, 128, 1, 6, true},     //  512, 640 clocks, 51 B
    {Schedule::rows, 128, 192, 2, 5, false},    //  768, 832 clocks, 34 B
    {Schedule::rows, 128, 256, 2, 4, true},     // 1024, 1024 clocks, 32 B: the large shapes
};
constexpr int kVariantCount = sizeof(kVariants) / sizeof(kVariants[0]);

constexpr int smem_bytes(const Variant& variant) {
  const int stage = (variant.left + variant.right) * kStepBytes + 16;  // and its two barriers
  return static_cast<int>(round_up(variant.stages * stage + variant.consumer_threads() / 32 * kStagingBytes, 1024));
}

// How the operands lie in memory.
struct Layout {
  bool transposed_a = false;  // unit stride along m
  bool transposed_b = false;  // unit stride along n
  bool by_hand = false;       // an operand is not aligned as the copy engine wants: threads copy, each block for itself
};

struct Config {
  int variant;  // index in kVariants
  Schedule schedule;
  int tile_m, tile_n, tile_k;
  int stages, cluster, threads, smem_bytes;
  i64 left_tiles, right_tiles;  // left_tiles rounded up to whole clusters
  int band;                     // of TileGrid
  int grid;                     // blocks
};

// The estimate that ranks variants, in clocks of an H200 (132 SMs, 1.755 GHz, 4.3 TB/s). Calculated, not measured.
constexpr i64 estimated_clocks(const Variant& variant, i64 m, i64 n, i64 k, i64 batch, int sms) {
  constexpr i64 kMultiplyAdds = 2048, kSmemBytes = 128;  // per SM and clock
  constexpr i64 kL2Bytes = 6154, kMemoryBytes = 2450;    // per clock, all SMs
  constexpr i64 kLeastStep = 128, kTile = 300;           // barriers; draining and starting a tile
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_rows = swapped ? n : m, right_rows = swapped ? m : n;
  const i64 left = variant.left, right = variant.right;
  const i64 clusters = batch * ceil_div(left_rows, left * variant.cluster) * ceil_div(right_rows, right);
  const i64 at_once = larger(sms / variant.cluster, 1);
  const i64 active = smaller(clusters, at_once) * variant.cluster;
  const i64 slabs = ceil_div(smaller(left_rows, left), 64);
  const i64 multiply = slabs * 64 * right * kStepK / kMultiplyAdds;
  const i64 reads = slabs * (64 + right) * kStepBytes, writes = (left + right) * kStepBytes;
  const i64 fetched = smaller(left_rows, left) + smaller(right_rows, right) / variant.cluster;
  const i64 l2 = fetched * kStepBytes * active / kL2Bytes;
  const i64 step = larger(larger(multiply, (reads + writes) / kSmemBytes), larger(l2, kLeastStep));
  const i64 tile = ceil_div(k, kStepK) * step + slabs * 64 * right / 16 + kTile;
  const i64 compute = ceil_div(clusters, at_once) * tile;
  const i64 memory = batch * (m * k + n * k + m * n) * 2 / kMemoryBytes;
  // The smaller of the two is not quite hidden; this also settles what memory alone leaves equal.
  return larger(compute, memory) + smaller(compute, memory) / 8;
}

constexpr bool can_run(const Variant& variant, const Layout& layout, int sms) {
  return (variant.transposed_a || !layout.transposed_a) && (variant.cluster == 1 || !layout.by_hand) &&
         variant.cluster <= sms;
}

// How a given variant runs a problem. m, n, batch > 0.
constexpr Config config_of(int variant_index, i64 m, i64 n, i64 batch, int sms = 132) {
  const Variant& variant = kVariants[variant_index];
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_clusters = ceil_div(swapped ? n : m, variant.left * variant.cluster);
  const i64 right_tiles = ceil_div(swapped ? m : n, variant.right);
  const i64 clusters = smaller(batch * left_clusters * right_tiles, sms / variant.cluster);
  // Bands of about 2048 left rows: 132 tiles at once then span about 2048 rows of either operand.
  const i64 band = smaller(2048 / (variant.left * variant.cluster), left_clusters);
  return {.variant = variant_index,
          .schedule = variant.schedule,
          .tile_m = swapped ? variant.right : variant.left,
          .tile_n = swapped ? variant.left : variant.right,
          .tile_k = kStepK,
          .stages = variant.stages,
          .cluster = variant.cluster,
          .threads = variant.threads(),
          .smem_bytes = smem_bytes(variant),
          .left_tiles = left_clusters * variant.cluster,
          .right_tiles = right_tiles,
          .band = static_cast<int>(band),
          .grid = static_cast<int>(clusters * variant.cluster)};
}

// m, n, k, batch > 0.
constexpr Config choose_config(i64 m, i64 n, i64 k, i64 batch, const Layout& layout = {}, int sms = 132) {
  int best = -1;
  i64 best_clocks = 0;
  for (int i = 0; i < kVariantCount; ++i) {
    if (!can_run(kVariants[i], layout, sms)) continue;
    const i64 clocks = estimated_clocks(kVariants[i], m, n, k, batch, sms);
    if (best < 0 || clocks < best_clocks) {  // the first of equals: the smaller tile
      best = i;
      best_clocks = clocks;
    }
  }
  return config_of(best, m, n, batch, sms);
}

inline std::string describe(const Config& config) {
  const auto number = [](int value) { return std::to_string(value); };
  return std::string(config.schedule == Schedule::rows ? "rows" : "swap_ab") + " tile " + number(config.tile_m) + "x" +
         number(config.tile_n) + "x" + number(config.tile_k) + " stages " + number(config.stages) + " cluster " +
         number(config.cluster) + " threads " + number(config.threads) + " smem " + number(config.smem_bytes) +
         " grid " + number(config.grid);
}

}  // namespace glm5::gemm_sm90
