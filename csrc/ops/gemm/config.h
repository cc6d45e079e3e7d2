// Which tile gemm takes on sm_90a with bf16 operands (cuda/gemm_config.h): a pure function of the problem, without
// CUDA. Every variant adds in the same order, so the choice never shows in the result. k is never split: the sum is one
// chain.
#pragma once

#include "cuda/gemm_config.h"

namespace glm5::gemm_sm90 {

using cuda::kStagingBytes;
using cuda::kStepBytes;
using cuda::Schedule;
using Config = cuda::GemmConfig;

// Blocks of a cluster lie along `left` and share one right tile.
struct Variant : cuda::GemmVariant {
  bool transposed_a;  // also built for a with unit stride along m, as the gradient of a weight has it
};

constexpr int kStepK = 64;

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

constexpr int smem_bytes(const Variant& variant) { return cuda::gemm_smem_bytes(variant, 0); }

// How the operands lie in memory.
struct Layout {
  bool transposed_a = false;  // unit stride along m
  bool transposed_b = false;  // unit stride along n
  bool by_hand = false;       // an operand is not aligned as the copy engine wants: threads copy, each block for itself
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
constexpr Config config_of(int index, i64 m, i64 n, i64 batch, int sms = 132) {
  const Variant& variant = kVariants[index];
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_clusters = ceil_div(swapped ? n : m, variant.left * variant.cluster);
  const i64 right_tiles = ceil_div(swapped ? m : n, variant.right);
  // Bands of about 2048 left rows: 132 tiles at once then span about 2048 rows of either operand.
  const i64 band = smaller(2048 / (variant.left * variant.cluster), left_clusters);
  return cuda::gemm_config(variant, index, kStepK, smem_bytes(variant), left_clusters * variant.cluster, right_tiles,
                           batch * left_clusters * right_tiles, band, sms);
}

// m, n, k, batch > 0.
constexpr Config choose_config(i64 m, i64 n, i64 k, i64 batch, const Layout& layout = {}, int sms = 132) {
  const int best = cuda::best_variant(
      kVariants, [&](const Variant& variant) { return can_run(variant, layout, sms); },
      [&](const Variant& variant) { return estimated_clocks(variant, m, n, k, batch, sms); });
  return config_of(best, m, n, batch, sms);
}

}  // namespace glm5::gemm_sm90
