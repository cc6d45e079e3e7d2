#include "access.h"

#include <algorithm>
#include <cstring>

#include "report.h"
#include "touched.h"

namespace glm5::emulator {
namespace {

const char* verb(Access access) {
  return access == Access::read ? "read" : access == Access::write ? "write" : "atomic access";
}

// The part of shared memory that a block has, as host addresses.
struct Range {
  u64 begin, end;
};
Range shared_range(Cluster& cluster, u64 host) {
  const u64 rank = (host - u64(cluster.shared)) >> kRankShift;
  if (rank >= cluster.ctas.size()) return {0, 0};
  const u64 base = u64(cluster.shared) + (rank << kRankShift);
  return {base + kFirstShared, base + cluster.ctas[rank]->shared_end};
}

[[noreturn]] void outside_shared(Warp& warp, int lane, Access access, u64 host, u64 bytes) {
  Cluster& cluster = cluster_of(warp);
  const u32 address = shared_address(warp, host), rank = address >> kRankShift;
  if (rank >= cluster.ctas.size())
    fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes in shared memory of block ", rank,
          " of a cluster of ", cluster.ctas.size());
  const u32 offset = address & ((u32{1} << kRankShift) - 1), end = cluster.ctas[rank]->shared_end;
  fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes at shared address ", Hex{offset},
        ", outside the block's ", end - kFirstShared, " bytes [", Hex{kFirstShared}, ", ", Hex{end}, ")");
}

[[noreturn]] void outside_global(Warp& warp, int lane, Access access, u64 host, u64 bytes, const Extent* extent) {
  if (extent == nullptr)
    fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes at ", Hex{host}, ", where nothing is allocated");
  if (!extent->is_live && host < extent->end)
    fault(warp, lane, "freed", verb(access), " of ", bytes, " bytes in ", extent->name, ", which was freed");
  const i64 beyond = static_cast<i64>(host - extent->end);
  fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes at byte ", host - extent->begin, " of ",
        extent->name, ", which has ", extent->end - extent->begin, " bytes (",
        beyond >= 0 ? "starts " : "crosses the end; starts ", beyond >= 0 ? beyond : -beyond,
        beyond >= 0 ? " beyond its end)" : " before its end)");
}

void check_shadow(Warp& warp, int lane, Access access, u64 host, u64 bytes, const char* what) {
  u8* shadow = Memory::shadow(host);
  u64 words = 0, at_word = 0;
  for (u64 word; at_word + 8 <= bytes; at_word += 8) std::memcpy(&word, shadow + at_word, 8), words |= word;
  if (words == 0 && at_word == bytes) return;  // all initialised: the usual case
  for (u64 at = 0; at < bytes; ++at) {
    if (shadow[at] == kInitialised || (shadow[at] == kUninitialised && access == Access::write)) continue;
    if (shadow[at] == kOutside)
      fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes in a gap between the rows of ", what);
    fault(warp, lane, "uninitialised", verb(access), " of ", bytes, " bytes of ", what, " at ", Hex{host},
          "; byte ", at, " was never written");
  }
  if (access != Access::read) std::memset(shadow, kInitialised, bytes);
}

void check_local(Warp& warp, int lane, Access access, u64 host, u64 bytes) {
  const u64 size = warp.program->local_bytes, begin = u64(warp.local) + size * static_cast<u64>(lane);
  if (host - begin > size || bytes > size - (host - begin))
    fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes at byte ", static_cast<i64>(host - begin),
          " of the thread's ", size, " bytes of local memory");
}

template <class T>
bool any_shadow(const u64* hosts, u32 mask) {
  u64 found = 0;
  each_lane(mask, [&](int lane) {
    T value;
    std::memcpy(&value, Memory::shadow(hosts[lane]), sizeof value);
    found |= static_cast<u64>(value) | static_cast<u64>(static_cast<unsigned __int128>(value) >> 64);
  });
  return found != 0;
}

// True where some byte that the lanes touch is not plainly initialised.
bool needs_shadow(const u64* hosts, u32 mask, u32 bytes) {
  switch (bytes) {
    case 1: return any_shadow<u8>(hosts, mask);
    case 2: return any_shadow<u16>(hosts, mask);
    case 4: return any_shadow<u32>(hosts, mask);
    case 8: return any_shadow<u64>(hosts, mask);
    case 16: return any_shadow<unsigned __int128>(hosts, mask);
    default: return true;
  }
}

}  // namespace

void check_bytes(Warp& warp, int lane, Access access, u64 host, u64 bytes) {
  Memory& memory = Memory::instance();
  if (!memory.holds(host)) {
    if (memory.allows_host_pointers && host >= 65536) return;
    fault(warp, lane, "bounds", verb(access), " of ", bytes, " bytes at ", Hex{host}, ", which is no device address",
          host < 65536 ? " (a null pointer?)" : "");
  }
  if (memory.is_shared(host)) {
    Cluster& cluster = cluster_of(warp);
    if (!is_shared_host(warp, host))
      fault(warp, lane, "bounds", verb(access), " of shared memory of another cluster");
    const Range range = shared_range(cluster, host);
    if (host < range.begin || host + bytes > range.end) outside_shared(warp, lane, access, host, bytes);
    return check_shadow(warp, lane, access, host, bytes, "shared memory");
  }
  if (memory.is_local(host)) return check_local(warp, lane, access, host, bytes);
  Extent* extent = warp.recent;  // mostly the one of the access before
  if (extent == nullptr || host < extent->begin || host >= extent->end) extent = memory.find(host);
  if (extent == nullptr || !extent->is_live || host + bytes > extent->end)
    outside_global(warp, lane, access, host, bytes, extent);
  if (extent->is_constant && access != Access::read)
    fault(warp, lane, "bounds", verb(access), " of ", extent->name, ", which is constant");
  if (extent->is_watched) check_shadow(warp, lane, access, host, bytes, extent->name.c_str());
  if (TouchedBytes* touched = extent->is_constant ? nullptr : cluster_of(warp).touched)
    touched->note(access, host, bytes);
  warp.recent = extent;
}

void check_lanes(Warp& warp, Access access, const u64* hosts, u32 mask, u32 bytes, u32 alignment) {
  u64 low = ~u64{0}, high = 0, bits = 0;
  each_lane(mask, [&](int lane) {
    low = std::min(low, hosts[lane]);
    high = std::max(high, hosts[lane]);
    bits |= hosts[lane];
  });
  if (bits & (alignment - 1)) {
    each_lane(mask, [&](int lane) {
      if (hosts[lane] & (alignment - 1))
        fault(warp, lane, "alignment", verb(access), " of ", bytes, " bytes at ",
              Hex{is_shared_host(warp, hosts[lane]) ? shared_address(warp, hosts[lane]) : hosts[lane]},
              ", which is no multiple of ", alignment);
    });
  }
  // One test for the whole warp where all lanes meet the same allocation or the own block's shared memory.
  const Extent* recent = warp.recent;
  bool is_watched;
  if (recent && low >= recent->begin && high + bytes <= recent->end && recent->is_live &&
      (access == Access::read || !recent->is_constant)) {
    is_watched = recent->is_watched;
    if (!recent->is_constant) note_touched(warp, access, hosts, mask, bytes);
  } else {
    const u64 own = u64(cluster_of(warp).shared) + warp.cta->shared_address;
    if (low < own + kFirstShared || high + bytes > own + warp.cta->shared_end) {
      each_lane(mask, [&](int lane) { check_bytes(warp, lane, access, hosts[lane], bytes); });
      return;
    }
    is_watched = true;
  }
  if (!is_watched || !needs_shadow(hosts, mask, bytes)) return;
  each_lane(mask, [&](int lane) { check_bytes(warp, lane, access, hosts[lane], bytes); });
}

Agents& agents() {
  static Agents table;
  return table;
}

}  // namespace glm5::emulator
