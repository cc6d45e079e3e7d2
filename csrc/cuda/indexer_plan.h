// How the indexer's scores are cut into work on sm_90a: a pure function of the problem, without CUDA, for launchers and
// tests.
//
// A block of queries (256 pairs of a query and a head) meets tiles of 64 keys. An item is such a block and a part of
// its tiles: a span of so many, or one of `splits` equal shares of what its windows reach. Persistent blocks take items
// in turn, parts outermost, so that those running at one time read the same keys and neighbours have equally much to
// do; last queries first and every other round backwards, which evens out causal windows.
//
// Calculated per SM for e4m3 and one tile of 64 x 256 scores' products, not measured:
//   multiplication      64 x 256 x 128 / 4096 per clock                       512 clocks   (bf16: 1024)
//   shared memory       keys 2 x 8 KiB, queries 32 KiB, the copy's 8 KiB      448 clocks, 128 B each
//   arithmetic          per product one add (x + |x|) and one multiply-add    256 issues per scheduler, + about 110
//                       to add up four lanes, scale, mask and store
//   keys from the L2    8 KiB                                                 16 B per clock; 24 to 46 are to be had
// So it is bound by the tensor cores where 8 queries share their keys. With a wgmma of 128 pairs per tile (one
// warpgroup per tile, 4 queries) keys would ask 32 B per clock of the L2. One query per sequence asks 8.25 KiB of
// memory per tile, 443 clocks at 18.6 B, while one warpgroup multiplies its half of the queries in 256: bound by
// memory.
#pragma once

#include "core/glm5.h"

namespace glm5::cuda {

constexpr int kIndexerDim = 128;
constexpr int kIndexerTile = static_cast<int>(kPage);  // keys: the rows of a wgmma, and a page
constexpr int kIndexerPairs = 128;                     // (query, head): the columns of a wgmma
constexpr int kIndexerWarpgroups = 2;                  // that multiply; each has its own pairs

struct IndexerPlan {
  int queries;     // of a block
  int blocks;      // of queries
  int tiles;       // of keys, in a row
  int span_tiles;  // of an item
  int spans;
  int splits;  // 1 where there are several spans
  int grid;

  constexpr i64 items() const { return i64{blocks} * spans * splits; }
};

constexpr int indexer_queries(i64 heads) { return static_cast<int>(kIndexerWarpgroups * kIndexerPairs / heads); }

// A given cut. tokens, keys > 0; heads divides 128.
constexpr IndexerPlan indexer_plan(i64 tokens, i64 keys, i64 heads, int span_tiles, int most_blocks) {
  const int queries = indexer_queries(heads);
  const i64 blocks = ceil_div(tokens, queries), tiles = ceil_div(keys, kIndexerTile);
  const i64 spans = ceil_div(tiles, span_tiles);
  return {.queries = queries,
          .blocks = static_cast<int>(blocks),
          .tiles = static_cast<int>(tiles),
          .span_tiles = span_tiles,
          .spans = static_cast<int>(spans),
          .splits = 1,
          .grid = static_cast<int>(smaller(blocks * spans, most_blocks))};
}

// About 8 items per SM even out what windows make unequal. Spans of 32 tiles hide the start of an item, below 4 tiles
// the queries would weigh as much as the keys.
constexpr IndexerPlan indexer_plan(i64 tokens, i64 keys, i64 heads, int sms = 132) {
  const i64 tiles = ceil_div(tokens, indexer_queries(heads)) * ceil_div(keys, kIndexerTile);
  const i64 span = smaller(larger(tiles / (i64{8} * sms), 4), 32);
  return indexer_plan(tokens, keys, heads, static_cast<int>(span), sms);
}

}  // namespace glm5::cuda
