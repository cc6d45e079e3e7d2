// What a launch moves through memory, where somebody counts it: requests, bytes, and how many sectors or wavefronts they
// take beside the fewest that would do.
//
// Global memory moves in sectors of 32 bytes: a request takes those that its lanes meet, ideally as many as its
// different bytes fill. Shared memory has 32 banks of 4 bytes: a wavefront serves one word of each; words of 8 bytes go
// by half warps, of 16 bytes by quarters, ldmatrix and stmatrix by their matrices of 8 rows. Bulk copies have no
// wavefronts here.
#pragma once

#include <array>
#include <string>

#include "memory.h"

namespace glm5::emulator {

enum class Path : unsigned char {
  global_load, global_store, global_atomic, cp_async, bulk_load, bulk_store,  // sectors
  shared_load, shared_store, ldmatrix, stmatrix,                              // wavefronts
  shared_atomic, other_block, local_load, local_store, count
};
const char* name_of(Path path);

struct PathCounts {
  u64 requests = 0, bytes = 0, taken = 0, ideal = 0;  // taken, ideal: sectors or wavefronts
  PathCounts& operator+=(const PathCounts& other);
};

struct Traffic {
  std::array<PathCounts, static_cast<size_t>(Path::count)> paths{};
  u64 delivered = 0;  // bytes that bulk loads brought into shared memory: with multicast more than they read
  PathCounts& operator[](Path path) { return paths[static_cast<size_t>(path)]; }
  const PathCounts& operator[](Path path) const { return paths[static_cast<size_t>(path)]; }
  Traffic& operator+=(const Traffic& other);
};

// An instruction of a warp, `bytes` per lane of the mask at host addresses. by_matrix: ldmatrix and stmatrix.
void count_access(Traffic& traffic, Warp& warp, Access access, const u64* hosts, u32 mask, u32 bytes, bool by_matrix);
// The lanes' reads of global memory by a cp.async.
void count_sectors(PathCounts& counts, const u64* hosts, u32 mask, u32 bytes);
// A run of global bytes that a bulk copy moves.
void count_run(PathCounts& counts, u64 host, u64 bytes);

}  // namespace glm5::emulator
