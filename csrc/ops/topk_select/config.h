// How topk_select runs on sm_90a: a pure function of the problem, without CUDA.
//
// A row is one block's, or is shared by the blocks of a cluster where rows are too few to fill the chip. Two blocks fit
// an SM. The choice never shows in the result.
#pragma once

#include <string>

#include "core/tensor.h"

namespace glm5::topk_select_sm90 {

constexpr int kThreads = 512;
constexpr int kBlocksPerSm = 2;
constexpr int kMostCluster = 8;              // what every GPU of this architecture grants
constexpr i64 kLeastKeys = 4096;             // of a block: below, barriers between blocks cost more than they save
// Of the 227 KiB two blocks share, what the histograms (24 KiB) and small change leave: 24,064 keys of a piece of a
// row, or 12,032 candidates with their indices.
constexpr int kStagedBytes = 94 * 1024;
constexpr int kFixedBytes = 25 * 1024;

struct Config {
  int cluster;        // blocks that share a row
  int threads;
  int staged_bytes;   // of shared memory, for keys or candidates
  int smem_bytes;
  i64 grid;
};

constexpr Config config_of(i64 rows, int cluster, int staged_bytes = kStagedBytes) {
  return {.cluster = cluster,
          .threads = kThreads,
          .staged_bytes = staged_bytes,
          .smem_bytes = kFixedBytes + staged_bytes,
          .grid = rows * cluster};
}

// topk does not matter: a row's blocks share the keys, not the results.
constexpr Config choose_config(i64 rows, i64 keys, i64 topk, int sms = 132) {
  int cluster = 1;
  while (keys > topk && cluster < kMostCluster && rows * cluster * 2 <= i64{sms} * kBlocksPerSm &&
         keys >= kLeastKeys * cluster * 2)
    cluster *= 2;
  return config_of(rows, cluster);
}

inline std::string describe(const Config& config) {
  return "cluster " + std::to_string(config.cluster) + " threads " + std::to_string(config.threads) + " smem " +
         std::to_string(config.smem_bytes) + " grid " + std::to_string(config.grid);
}

}  // namespace glm5::topk_select_sm90
