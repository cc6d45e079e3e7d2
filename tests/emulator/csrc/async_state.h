// What the asynchronous agents and the checks know of a cluster, its blocks and its warps.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "agents.h"
#include "race_check.h"
#include "state.h"
#include "tensor_map.h"
#include "wgmma_state.h"

namespace glm5::emulator {

// The instruction that started something which may fail later.
struct Site {
  Warp* warp = nullptr;
  u32 pc = 0;
  int lane = 0;
};
Site site_of(Warp& warp, int lane);
// A fault that names the site's instruction.
[[noreturn]] void fault_at(const Site& site, const char* check, const std::string& sentence);

// Beside the word of an mbarrier.
struct Barrier {
  Clocks arriving, completed;  // views published in the phase under way, and in all before
  Epoch initialised;
  bool needs_fence = true;  // the initialisation has not been made visible to the async proxy
};

// A copy under way, or an arrival that waits for copies.
struct PendingCopy {
  enum class Kind : int { load, store, cp_async, arrival } kind = Kind::load;
  Site site;
  u32 lanes = 0;           // cp_async and arrival: whose
  u64 sequence = 0;        // cp_async and arrival: order within the cluster
  u32 group[kLanes] = {};  // of each lane (store: of site.lane)
  std::shared_ptr<const std::vector<Segment>> segments;
  u64 to_offset = 0;  // added to the destinations: other blocks of a multicast
  u32 fill = 0;       // of what has no source: repeated
  u32 block = 0;      // rank of the block that is written
  // load: the barrier that counts the bytes. arrival: by lane.
  u64 barrier[kLanes] = {};
  u32 bytes = 0;
  u64 tensor_map = 0;     // store: the map that it goes by; 0: none
  Clocks view;            // what is done once this is
  bool has_read = false;  // store: the source has been read into `data`
  std::vector<u8> data;
  void (*reduce)(u8* to, const u8* from, u32 bytes) = nullptr;  // store: instead of overwriting
};

// One lane's groups of copies: `open` is the number of the group under way; clocks as of each commit.
struct CopyGroups {
  u32 open = 0;
  std::vector<u32> clocks;
};

struct AsyncWarpState {
  u32 number = 0;  // in the cluster
  WarpOrder order;
  u32 copy_in = 0;  // clock of the warp's bulk copies into shared memory
  CopyGroups copy_groups[kLanes], bulk_groups[kLanes];
  WgmmaWarp wgmma;
};

struct AsyncCtaState {
  std::vector<Warpgroup> warpgroups;
};

// fence.proxy.tensormap::generic.acquire of a version of a map.
struct AcquiredMap {
  u32 version;
  Epoch when;
};

struct AsyncClusterState {
  AsyncClusterState(AgentNumbers agents, u32 blocks, u32 bytes_per_block) : races(agents, blocks, bytes_per_block) {}
  RaceCheck races;
  std::vector<PendingCopy> pending;
  u64 sequence = 0;
  std::unordered_map<u64, Barrier> barriers;  // by host address
  std::unordered_map<u64, Clocks> published;  // by the key of on_release
  std::unordered_map<u64, std::vector<AcquiredMap>> acquired_maps;  // by address
  OperandCache operands;
};

inline AsyncClusterState& async_of(Cluster& cluster) { return *cluster.async; }
inline AsyncWarpState& async_of(Warp& warp) { return *warp.async; }

// One of an instruction's addresses.
struct AddressRow {
  Operand row;
  i64 offset = 0;
  bool is_64 = true;
  u64 at(Warp& warp, int lane) const {
    const u64 base = is_64 ? row_of<u64>(warp)[lane] : u64{row_of<u32>(warp)[lane]};
    return base + static_cast<u64>(offset);
  }
  // The host address.
  u64 host(Warp& warp, int lane, Space space) const {
    const u64 address = at(warp, lane);
    return host_address(warp, space, is_64 || space != Space::shared ? address : address & 0xffffffff);
  }

 private:
  template <class T>
  const T* row_of(Warp& warp) const {
    return emulator::row<T>(warp, row);
  }
};

// ---- ordering ----

// An access by a lane itself, or by the lanes `together` as one.
Accessor accessor_of(Warp& warp, int lane, u32 together = 0);
// One by lanes that learn from `done`: what they did, and what they know.
Accessor accessor_by(u16 agent, u32 clock, const Clocks& done, int proxy_reader = -1);
// The lanes learn; those that have exited never differ from them.
void learn(Warp& warp, u32 lanes, const Clocks& news);
void check_conflict(Warp& warp, int lane, const Conflict& conflict, const char* verb);
std::string describe_work(Cluster& cluster, const Epoch& work);

// ---- mbarriers, used by copies ----

// The barrier at a host address; a fault where it is none, or where its initialisation is not ordered before the warp.
Barrier& barrier_at(Warp& warp, int lane, u64 host);
// Counts bytes of a copy that has come.
void complete_bytes(Cluster& cluster, const Site& site, u64 barrier_host, u32 bytes, const Clocks& view);
void arrive_late(Cluster& cluster, const Site& site, u64 barrier_host, const Clocks& view);
// Phase, arrivals and bytes to come, of the barrier at a shared address.
std::string describe_barrier(Cluster& cluster, u64 address);
// The barrier of a copy that starts: initialised, and visible to the async proxy.
void require_async_barrier(Warp& warp, int lane, u64 host);

// A map that a copy uses: acquired since the kernel changed it, and such as the driver would have made.
void require_acquired_map(Warp& warp, int lane, u64 address, const TensorMap& map);

// ---- copies ----

bool complete_one_copy(Cluster& cluster, bool urgent);
void finish_copies(Cluster& cluster);

}  // namespace glm5::emulator
