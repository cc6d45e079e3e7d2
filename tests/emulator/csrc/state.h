// What exists while a grid runs: warps with their groups of lanes, blocks, clusters, the grid.
//
// A warp's lanes are in groups, each with its own pc and return stack; groups split at branches and merge when they
// meet. An executor sees the running group as warp.group. Blocking is by retry: an executor that cannot go on fills
// group.wait, returns Step::blocked, and is called again once something has changed.
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "program.h"
#include "tensor_map_changes.h"

namespace glm5::emulator {

struct Warp;
struct Cta;
struct Cluster;
struct Grid;
struct Extent;
struct Traffic;

// The state of the asynchronous agents and of the race check, which their own files define.
struct AsyncWarpState;
struct AsyncCtaState;
struct AsyncClusterState;
class TouchedBytes;
struct Watch;
struct WatchedWarp;

enum class WaitKind : int { none, converge, barrier, cluster_barrier, mbarrier, copy_group, bulk_group, wgmma, other };

// What a blocked group waits for; only read for reports and by the executor that set it.
struct Wait {
  WaitKind kind = WaitKind::none;
  u64 address = 0;  // mbarrier: shared address; barrier: its number
  u32 parity = 0;   // mbarrier: phase; groups: how many may stay pending
  u64 ticket = 0;   // belongs to the executor, e.g. the generation of a barrier; 0 = not yet arrived
};

struct CallSite;
struct CallFrame {
  u32 return_pc;
  const CallSite* site;
  bool operator==(const CallFrame&) const = default;
};

struct Group {
  u32 mask = 0;
  u32 pc = 0;
  bool blocked = false;
  Wait wait;  // wait.ticket != 0 keeps the group from merging with others
  std::vector<CallFrame> stack;
};

struct Warp {
  const u8* base[3] = {};  // by Region; registers are written through row()
  Group* group = nullptr;  // the group that executes
  Cta* cta = nullptr;
  const Program* program = nullptr;
  int index = 0;           // in the block; index / 4 is the warpgroup
  u32 live = kAllLanes;    // lanes that exist and have not exited
  std::deque<Group> groups;  // a deque: splitting does not move the running group
  u8* local = nullptr;     // local memory: lane l has [local + l * program->local_bytes, ...)
  Extent* recent = nullptr;  // the allocation that the last access met
  u64 executed = 0;        // instructions
  u64 seen_events = 0;     // Cluster::events when the warp last found every group blocked
  u32 rotation = 0;        // slices that ended with several groups: odd ones go to another group than the one behind
  bool time_out = false;   // mbarrier.try_wait gives up (false) instead of blocking, and clears this
  u32 cluster_arrived = 0;  // lanes that arrived at the cluster barrier in the phase under way
  u32 cluster_unwaited = 0;  // lanes that arrived and have not waited yet
  std::vector<u8> registers, specials;
  std::shared_ptr<AsyncWarpState> async;
  std::shared_ptr<WatchedWarp> watched;  // null: nobody looks
  bool done() const { return live == 0; }
};

// bar.sync and its kin, 16 per block.
struct NamedBarrier {
  u32 arrived = 0;     // threads, counted in whole warps
  u32 expected = 0;    // 0: nobody has come; threads
  u64 generation = 1;  // completed phases + 1
  u32 votes = 0, voters = 0;  // bar.red of the phase under way
  u32 last_votes = 0, last_voters = 0;  // and of the last complete one
  bool expects_all = false;
};

struct Cta {
  Cluster* cluster = nullptr;
  u32 rank = 0;             // in the cluster
  u32 id[3] = {};           // %ctaid
  std::vector<std::unique_ptr<Warp>> warps;
  NamedBarrier barriers[16];
  u32 shared_address = 0;   // rank << 24
  u32 shared_end = 0;       // first byte beyond, without the rank bits
  std::shared_ptr<AsyncCtaState> async;
};

struct Cluster {
  Grid* grid = nullptr;
  u32 id[3] = {};
  std::vector<std::unique_ptr<Cta>> ctas;
  u8* shared = nullptr;     // host address of shared::cluster address 0
  int window = -1;          // which shared window it holds
  u64 local_bytes = 0;      // of the window's local memory that is taken
  std::mt19937_64 random;   // its own, so that its schedule does not depend on the others
  u64 instructions_left = 0;
  Hits* hits = nullptr;     // by instruction: the program's, or those of the thread that runs it
  Traffic* traffic = nullptr;  // null: nobody counts
  TouchedBytes* touched = nullptr;  // null: nobody keeps a record
  u64 barrier_generation = 1;
  u64 events = 1;           // grows whenever something happens that could wake a blocked warp
  std::shared_ptr<AsyncClusterState> async;
  bool done() const;
};

// How warps are ordered and asynchronous work completes.
enum class Schedule : int {
  fair,    // round robin, asynchronous work completes as soon as it may
  random,  // by seed
  late,    // asynchronous work completes only when nothing else can run
  lowest,  // the lowest warp that can run always runs
  highest,
};

struct Grid {
  const Program* program = nullptr;
  u32 blocks[3] = {1, 1, 1}, threads[3] = {1, 1, 1}, cluster_shape[3] = {1, 1, 1};
  u32 dynamic_shared_bytes = 0;
  const u8* parameters = nullptr;  // 128-byte aligned
  Schedule schedule = Schedule::fair;
  u64 seed = 0;
  u64 instruction_limit = 0;  // in warp instructions
  u32 threads_of_host = 1;    // that may run clusters
  const Watch* watch = nullptr;
  TensorMapChanges tensor_maps;
  Traffic* traffic = nullptr;  // null: it is not counted
  u32 thread_count() const { return threads[0] * threads[1] * threads[2]; }
  u32 cluster_ctas() const { return cluster_shape[0] * cluster_shape[1] * cluster_shape[2]; }
};

// The row that an operand names.
template <class T>
inline T* row(Warp& warp, Operand operand) {
  return reinterpret_cast<T*>(const_cast<u8*>(warp.base[operand.region]) + operand.offset);
}

inline u32& predicate(Warp& warp, Operand operand) { return *row<u32>(warp, operand); }

inline Cluster& cluster_of(Warp& warp) { return *warp.cta->cluster; }

// Tells the scheduler that blocked warps of the cluster are worth another try.
inline void wake(Cluster& cluster) { ++cluster.events; }

// The lane that a report names when all of them are meant.
inline int first_lane(u32 mask) { return __builtin_ctz(mask ? mask : 1); }

}  // namespace glm5::emulator
