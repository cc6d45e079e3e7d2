// From an instruction's address row to checked host addresses.
#pragma once

#include "agents.h"
#include "lanes.h"
#include "memory.h"
#include "traffic.h"

namespace glm5::emulator {

// The host addresses of the lanes of the mask.
inline void host_addresses(Warp& warp, const Instruction& in, u32 mask, u64* hosts) {
  const u64 base = in.space == Space::shared ? u64(cluster_of(warp).shared) : 0;
  const u64 offset = static_cast<u64>(in.offset);
  if (in.address_is_64) {
    const u64* a = row<u64>(warp, in.a);
    const u64 keep = in.space == Space::shared ? 0xffffffff : ~u64{0};
    compute(hosts, mask, [=](int i) { return base + ((a[i] + offset) & keep); });
  } else {
    const u32* a = row<u32>(warp, in.a);
    compute(hosts, mask, [=](int i) { return base + static_cast<u32>(a[i] + static_cast<u32>(offset)); });
  }
}

// All checks of an access by the generic proxy.
inline void check_access(Warp& warp, const Instruction& in, Access access, const u64* hosts, u32 mask, u32 bytes,
                         u32 alignment, const u32* sets = nullptr) {
  check_lanes(warp, access, hosts, mask, bytes, alignment);
  if (in.space == Space::param) return;
  if (Traffic* traffic = cluster_of(warp).traffic)
    count_access(*traffic, warp, access, hosts, mask, bytes, sets != nullptr);
  const auto listener = agents().on_access;
  if (listener == nullptr) return;
  const bool is_shared = is_shared_host(warp, hosts[first_lane(mask)]);
  listener(warp, in, {access, in.is_volatile || access == Access::atomic, is_shared, hosts, mask, bytes, sets});
}

}  // namespace glm5::emulator
