// Where the asynchronous agents and the checks that follow every access meet the core. Each entry may be null.
#pragma once

#include "memory.h"

namespace glm5::emulator {

struct Agents {
  void (*on_cluster_start)(Cluster&) = nullptr;
  void (*on_cluster_end)(Cluster&) = nullptr;  // all warps have exited: what is still pending is completed or reported
  void (*on_warp_exit)(Warp&, u32 lanes) = nullptr;
  // Completes one pending asynchronous operation of the cluster; false where there is none. `urgent`: nothing else can
  // run. Not urgent: the schedule may decide to complete none.
  bool (*complete_one)(Cluster&, bool urgent) = nullptr;
  void (*on_access)(Warp&, const Instruction&, const AccessEvent&) = nullptr;  // generic proxy, after the checks
  // Ordering edges, for the race check. A barrier: arrivals publish, departures acquire. `key` names the object.
  void (*on_release)(Warp&, u32 lanes, u64 key) = nullptr;
  void (*on_acquire)(Warp&, u32 lanes, u64 key) = nullptr;
  void (*on_meeting)(Warp&, u32 lanes) = nullptr;  // bar.warp.sync: all these lanes have come
  void (*on_launch_end)(Grid&) = nullptr;
};

Agents& agents();

// Keys of on_release and on_acquire.
inline u64 barrier_key(const Cta& cta, u32 number) { return u64(&cta.barriers[number]); }
inline u64 cluster_barrier_key(const Cluster& cluster) { return u64(&cluster.barrier_generation); }

// True where a group must wait until the lanes of `members` are together at this instruction (the .sync rule): fills
// group.wait. Executors of .sync instructions begin with: if (must_converge(...)) return Step::blocked;
bool must_converge(Warp& warp, u32 members);
// For .aligned instructions: all live lanes of the warp must be in this group and have a true guard, or it is a fault
// once the others cannot come any more.
bool must_converge_aligned(Warp& warp, u32 mask);

}  // namespace glm5::emulator
