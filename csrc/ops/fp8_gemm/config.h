// Which tile fp8_gemm takes on sm_90a (cuda/gemm_config.h): a pure function of the problem, without CUDA. Every variant
// adds in the same order, so the choice never shows in the result.
//
// Why k is never split. The sum over k groups is a chain of fused multiply-adds, so a split would change the bits or
// wait for its predecessor. It is not needed either: a 64-row weight tile gives 64 busy SMs at n = 4096 and 96 at
// n = 6144, and one SM takes 64 B/clock = 112 GB/s into shared memory, so that 39 of them already draw 4.3 TB/s.
// Narrower GEMMs are small: n = 2624, k = 6144 has 41 tiles; each takes 48 steps of 10 KiB, 160 clocks of filling each.
#pragma once

#include "core/glm5.h"
#include "cuda/gemm_config.h"

namespace glm5::fp8_gemm_sm90 {

using cuda::kStagingBytes;
using cuda::kStepBytes;
using cuda::Schedule;
using Config = cuda::GemmConfig;
static_assert(kStepBytes == kFp8Group, "128 of k at a time");

// Blocks of a cluster lie along `right` and share one left tile.
struct Variant : cuda::GemmVariant {
  bool per_row;  // also built for b scales per row
};

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

using cuda::fp8_smem_bytes;

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
constexpr Config config_of(int index, i64 m, i64 n, bool b_scales_per_row = false, int sms = 132) {
  const Variant& variant = kVariants[index];
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const i64 left_tiles = ceil_div(swapped ? n : m, variant.left);
  const i64 right_clusters = ceil_div(ceil_div(swapped ? m : n, variant.right), variant.cluster);
  // Bands of about 2048 left rows: 132 tiles at once then span about 2048 rows of either operand.
  const i64 band = smaller(2048 / variant.left, left_tiles);
  return cuda::gemm_config(variant, index, kStepBytes, fp8_smem_bytes(variant, b_scales_per_row), left_tiles,
                           right_clusters * variant.cluster, left_tiles * right_clusters, band, sms);
}

// m, n, k > 0.
constexpr Config choose_config(i64 m, i64 n, i64 k, bool b_scales_per_row = false, int sms = 132) {
  const int best = cuda::best_variant(
      kVariants, [&](const Variant& variant) { return can_run(variant, b_scales_per_row, sms); },
      [&](const Variant& variant) { return estimated_clocks(variant, m, n, k, sms); });
  return config_of(best, m, n, b_scales_per_row, sms);
}

}  // namespace glm5::fp8_gemm_sm90
