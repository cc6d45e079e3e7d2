// How indexer_topk is cut on sm_90a, and its workspace: a pure function of the problem, without CUDA.
//
// A persistent block scores all keys of its 4 or 8 queries and keeps candidates of each: those above a bound that rises
// whenever the buffer fills up. Buffers belong to blocks, not to tokens. Where there are fewer blocks of queries than
// multiprocessors, the keys of each are split; every split leaves its best topk, and a second kernel merges them.
//
// What selection costs, calculated for topk 2048 and scores in any order: a key passes with the chance that it is among
// the best seen at the last compaction, about 4 compactions of 8192 candidates at 32K keys and 6 at 128K. Each reads
// its candidates twice (one pass of a histogram, one that moves them), 64 KiB a time from the L2, about 5000 clocks;
// the last one reads them up to five times. For the 4 queries of a warpgroup that is some 130 thousand clocks at 128K,
// beside 1.05 million for the scores; at 32K some 100 thousand beside 262 thousand, half of it hidden while the other
// warpgroup multiplies. None of it is measured.
#pragma once

#include "cuda/indexer_plan.h"

namespace glm5::indexer_topk_sm90 {

constexpr int kSms = 132;        // planned for, whatever the device has, so that the workspace does not depend on it
constexpr int kChunkTiles = 32;  // between looks at the buffers: 2048 keys
constexpr i64 kAlignment = 256;

struct Plan {
  cuda::IndexerPlan cut;
  int topk;
  int chunk_tiles;
  int capacity;  // candidates of a query in a block's buffer
  int limit;     // candidates at which there may be no room for another chunk
  int slots;     // candidates that a split leaves for a token

  constexpr i64 buffer_bytes() const { return round_up(i64{cut.grid} * cut.queries * capacity * 8, kAlignment); }
  // Of a token: a candidate per slot and the best score left out, for every split.
  constexpr i64 split_bytes(i64 tokens) const {
    return cut.splits == 1 ? 0 : round_up(tokens * cut.splits * (i64{slots} * 8 + 4), kAlignment);
  }
};

// A given cut. tokens, topk > 0; without keys there is one tile, in which nothing is looked at.
constexpr Plan plan_of(i64 tokens, i64 keys, i64 heads, i64 topk, int splits, int chunk_tiles, int most_blocks) {
  const i64 tiles = ceil_div(larger(keys, 1), cuda::kIndexerTile);
  cuda::IndexerPlan cut = cuda::indexer_plan(tokens, larger(keys, 1), heads, static_cast<int>(tiles), most_blocks);
  cut.splits = splits;
  cut.grid = static_cast<int>(smaller(cut.items(), most_blocks));
  const i64 all = ceil_div(tiles, splits) * cuda::kIndexerTile;  // that an item can have
  const i64 chunk = i64{chunk_tiles} * cuda::kIndexerTile, wanted = topk + 3 * chunk;
  return {.cut = cut,
          .topk = static_cast<int>(topk),
          .chunk_tiles = chunk_tiles,
          .capacity = static_cast<int>(smaller(wanted, all)),
          .limit = wanted < all ? static_cast<int>(wanted - chunk) : 0x7fffffff,
          .slots = static_cast<int>(smaller(topk, all))};
}

// The fewest splits that keep nine tenths of the multiprocessors busy, in at most four rounds, two tiles each or more.
constexpr int choose_splits(i64 blocks, i64 tiles) {
  const i64 most = smaller(larger(4 * kSms / blocks, 1), larger(tiles / 2, 1));
  if (blocks >= 2 * kSms) return 1;
  i64 best = 1, best_busy = 0;
  for (i64 splits = 1; splits <= smaller(most, kSms); ++splits) {
    const i64 items = blocks * splits;
    const i64 busy = items * 1000 / (ceil_div(items, kSms) * kSms);
    if (busy > best_busy) best = splits, best_busy = busy;
    if (busy >= 900) break;
  }
  return static_cast<int>(best);
}

constexpr Plan choose_plan(i64 tokens, i64 keys, i64 heads, i64 topk) {
  const i64 blocks = ceil_div(tokens, cuda::indexer_queries(heads)), tiles = ceil_div(keys, cuda::kIndexerTile);
  return plan_of(tokens, keys, heads, topk, choose_splits(blocks, tiles), kChunkTiles, kSms);
}

constexpr i64 workspace_bytes(const Plan& plan, i64 tokens) { return plan.buffer_bytes() + plan.split_bytes(tokens); }

// Scratch of one call: candidates of the queries of every block that runs, O(topk), and where tokens are few
// O(tokens * topk). Nothing where the launcher refuses.
constexpr i64 workspace_bytes_of(i64 tokens, i64 keys, i64 heads, i64 topk) {
  const bool runs = tokens > 0 && topk > 0 && (heads == 32 || heads == 64);
  return runs ? workspace_bytes(choose_plan(tokens, keys, heads, topk), tokens) : 0;
}

}  // namespace glm5::indexer_topk_sm90
