#include "traffic.h"

#include <algorithm>

#include "lanes.h"

namespace glm5::emulator {
namespace {

constexpr u64 kSector = 32, kBankBytes = 4;
constexpr u32 kBanks = 32;

// The different addresses of the lanes, ascending.
struct Addresses {
  u64 at[kLanes];
  int count = 0;
  Addresses(const u64* hosts, u32 mask) {
    each_lane(mask, [&](int lane) { at[count++] = hosts[lane]; });
    if (!std::is_sorted(at, at + count)) std::sort(at, at + count);
    count = static_cast<int>(std::unique(at, at + count) - at);
  }
};

// How often one bank has to be read for the different words of these lanes.
u32 wavefronts(const u64* hosts, u32 lanes, u32 bytes) {
  const Addresses different(hosts, lanes);
  u32 of_bank[kBanks] = {}, most = 0;
  u64 last = ~u64{0};
  for (int i = 0; i < different.count; ++i) {
    const u64 first = different.at[i] / kBankBytes, end = (different.at[i] + bytes - 1) / kBankBytes;
    for (u64 word = first; word <= end; ++word) {
      if (word == last) continue;
      last = word;
      most = std::max(most, ++of_bank[word % kBanks]);
    }
  }
  return most;
}

void count_wavefronts(PathCounts& counts, const u64* hosts, u32 mask, u32 bytes) {
  const u32 lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (u32 first = 0; first < kLanes; first += lanes) {
    const u32 part = mask & static_cast<u32>(((u64{1} << lanes) - 1) << first);
    if (part == 0) continue;
    counts.taken += wavefronts(hosts, part, bytes);
    ++counts.ideal;
  }
}

Path path_of(Warp& warp, Access access, u64 host, bool by_matrix) {
  const bool reads = access == Access::read;
  if (is_shared_host(warp, host)) {
    if (shared_address(warp, host) >> kRankShift != warp.cta->rank) return Path::other_block;
    if (by_matrix) return reads ? Path::ldmatrix : Path::stmatrix;
    return access == Access::atomic ? Path::shared_atomic : reads ? Path::shared_load : Path::shared_store;
  }
  if (Memory::instance().is_local(host)) return reads ? Path::local_load : Path::local_store;
  return access == Access::atomic ? Path::global_atomic : reads ? Path::global_load : Path::global_store;
}

}  // namespace

const char* name_of(Path path) {
  constexpr const char* kNames[] = {"global loads", "global stores", "global atomics", "cp.async", "bulk loads",
                                    "bulk stores", "shared loads", "shared stores", "ldmatrix", "stmatrix",
                                    "shared atomics", "other blocks", "local loads", "local stores"};
  static_assert(std::size(kNames) == static_cast<size_t>(Path::count));
  return kNames[static_cast<size_t>(path)];
}

PathCounts& PathCounts::operator+=(const PathCounts& other) {
  requests += other.requests;
  bytes += other.bytes;
  taken += other.taken;
  ideal += other.ideal;
  return *this;
}

Traffic& Traffic::operator+=(const Traffic& other) {
  for (size_t i = 0; i < paths.size(); ++i) paths[i] += other.paths[i];
  delivered += other.delivered;
  return *this;
}

void count_sectors(PathCounts& counts, const u64* hosts, u32 mask, u32 bytes) {
  if (mask == 0) return;
  const Addresses different(hosts, mask);
  ++counts.requests;
  counts.bytes += u64{bytes} * static_cast<u64>(__builtin_popcount(mask));
  counts.ideal += (static_cast<u64>(different.count) * bytes + kSector - 1) / kSector;
  u64 next = 0;  // the first sector that has not been met
  for (int i = 0; i < different.count; ++i) {
    const u64 first = std::max(different.at[i] / kSector, next), end = (different.at[i] + bytes - 1) / kSector + 1;
    if (end > first) counts.taken += end - first;
    next = std::max(next, end);
  }
}

void count_run(PathCounts& counts, u64 host, u64 bytes) {
  counts.bytes += bytes;
  counts.taken += (host + bytes - 1) / kSector - host / kSector + 1;
  counts.ideal += (bytes + kSector - 1) / kSector;
}

void count_access(Traffic& traffic, Warp& warp, Access access, const u64* hosts, u32 mask, u32 bytes, bool by_matrix) {
  const Path path = path_of(warp, access, hosts[first_lane(mask)], by_matrix);
  PathCounts& counts = traffic[path];
  if (path == Path::global_load || path == Path::global_store || path == Path::global_atomic)
    return count_sectors(counts, hosts, mask, bytes);
  ++counts.requests;
  counts.bytes += u64{bytes} * static_cast<u64>(__builtin_popcount(mask));
  if (path >= Path::shared_load && path <= Path::stmatrix) count_wavefronts(counts, hosts, mask, bytes);
}

}  // namespace glm5::emulator
