// Groups within a warp, warps within a cluster, clusters within a grid.
#include "scheduler.h"

#include <algorithm>

#include "agents.h"
#include "async_state.h"
#include "debug.h"
#include "memory.h"
#include "report.h"
#include "residency.h"

namespace glm5::emulator {
namespace {

constexpr u64 kSlice = 4096;          // instructions of one group before another one gets its turn
constexpr int kHopelessRounds = 300;  // rounds of try_wait giving up before it is called a deadlock

bool may_merge(const Group& a, const Group& b) {
  return a.pc == b.pc && a.wait.ticket == 0 && b.wait.ticket == 0 && a.stack == b.stack;
}

void merge_groups(Warp& warp) {
  std::erase_if(warp.groups, [](const Group& group) { return group.mask == 0; });
  for (size_t i = 0; i < warp.groups.size(); ++i) {
    for (size_t j = i + 1; j < warp.groups.size();) {
      Group &kept = warp.groups[i], &other = warp.groups[j];
      if (!may_merge(kept, other)) {
        ++j;
        continue;
      }
      kept.mask |= other.mask;
      kept.blocked = false;
      kept.wait = {};
      warp.groups.erase(warp.groups.begin() + static_cast<long>(j));
    }
  }
}

// The deepest stack, then the lowest pc: so that lanes that are ahead wait where the others will meet them. After a
// slice that did not bring them together each of the others gets one in turn: a group may spin on what a sibling does.
Group* choose_group(Warp& warp) {
  if (warp.rotation & 1) {
    Group& other = warp.groups[warp.rotation / 2 % warp.groups.size()];
    if (!other.blocked) return &other;
  }
  Group* best = nullptr;
  for (Group& group : warp.groups) {
    if (group.blocked) continue;
    const bool better = best == nullptr || group.stack.size() > best->stack.size() ||
                        (group.stack.size() == best->stack.size() && group.pc < best->pc);
    if (better) best = &group;
  }
  return best;
}

// The next pc at which the group may meet another; groups that are behind do not count.
u32 next_meeting(const Warp& warp, const Group& group) {
  u32 limit = ~u32{0};
  for (const Group& other : warp.groups)
    if (&other != &group && other.pc > group.pc) limit = std::min(limit, other.pc);
  return limit;
}

// After a jump among several groups: is this one still the furthest behind, with the same stack depth as before?
bool is_still_behind(const Warp& warp, const Group& group) {
  for (const Group& other : warp.groups)
    if (&other != &group && (other.pc <= group.pc || other.stack.size() > group.stack.size())) return false;
  return true;
}

enum class Turn { slice_ended, blocked, met, yielded };

// The inner loop of the emulator.
template <bool kIsWatched>
Turn run_group(Warp& warp, Group& group, u64 slice) {
  const Instruction* code = warp.program->code.data();
  Hits* hits = cluster_of(warp).hits;
  const size_t groups = warp.groups.size();
  u32 limit = groups == 1 ? ~u32{0} : next_meeting(warp, group);
  warp.group = &group;
  group.blocked = false;
  u64 left = slice;
  Turn turn = Turn::slice_ended;
  while (left > 0) {
    const u32 pc = group.pc;
    const Instruction& in = code[pc];
    const u32 mask = group.mask & (predicate(warp, in.guard) ^ in.guard_flip);
    --left;
    if (mask != 0) {
      hits[pc].warps += 1;
      hits[pc].lanes += static_cast<u64>(__builtin_popcount(mask));
      const Step step = kIsWatched ? execute_watched(warp, in, mask) : in.execute(warp, in, mask);
      if (step == Step::next) [[likely]] {
        group.pc = pc + 1;
      } else if (step == Step::jumped) {
        if (group.mask == 0 || warp.groups.size() != groups || (groups > 1 && !is_still_behind(warp, group))) {
          turn = Turn::met;
          break;
        }
        if (groups > 1) limit = next_meeting(warp, group);
        continue;
      } else if (step == Step::blocked) {
        group.blocked = true;
        hits[pc].warps -= 1;
        hits[pc].lanes -= static_cast<u64>(__builtin_popcount(mask));
        turn = Turn::blocked;
        break;
      } else {
        group.pc = pc + 1;
        turn = Turn::yielded;
        break;
      }
    } else {
      group.pc = pc + 1;
    }
    if (group.pc >= limit) {
      turn = Turn::met;
      break;
    }
  }
  warp.executed += slice - left;
  return turn;
}

void charge(Cluster& cluster, Warp& warp, u64 executed) {
  if (executed <= cluster.instructions_left) {
    cluster.instructions_left -= executed;
    return;
  }
  fault(warp, -1, "endless", "the launch has executed its limit of ", cluster.grid->instruction_limit,
        " warp instructions and has not ended");
}

// Runs a warp until all its groups are blocked, it yields, or its slice ends. True where it executed something.
bool run_warp(Warp& warp, u64 slice) {
  Cluster& cluster = cluster_of(warp);
  const u64 begin = warp.executed;
  warp.seen_events = cluster.events;
  for (Group& group : warp.groups) group.blocked = false;
  bool advanced = false, yielded = false;
  while (!warp.done() && warp.executed - begin < slice) {
    merge_groups(warp);
    Group* group = choose_group(warp);
    if (group == nullptr) break;
    const u64 before = warp.executed, events = cluster.events;
    const u32 pc = group->pc;
    const u64 longest = std::min(kSlice, slice);
    const Turn turn = warp.watched ? run_group<true>(warp, *group, longest) : run_group<false>(warp, *group, longest);
    charge(cluster, warp, warp.executed - before);
    // A blocked instruction alone is no advance, unless it changed something (an arrival).
    advanced =
        advanced || turn != Turn::blocked || warp.executed - before > 1 || group->pc != pc || cluster.events != events;
    if (turn == Turn::blocked && warp.groups.size() > 1 && cluster.events != warp.seen_events) {
      warp.seen_events = cluster.events;
      for (Group& other : warp.groups) other.blocked = false;
      // The group that just blocked has seen everything.
      group->blocked = cluster.events == events;
    }
    yielded = turn == Turn::yielded;
    if (yielded) break;
  }
  merge_groups(warp);
  const bool is_spinning = warp.groups.size() > 1 && (yielded || warp.executed - begin >= slice);
  warp.rotation = is_spinning ? warp.rotation + 1 : 0;
  warp.group = nullptr;
  warp.time_out = false;
  return advanced;
}

bool can_run(const Warp& warp) {
  if (warp.done()) return false;
  if (warp.seen_events != warp.cta->cluster->events || warp.time_out) return true;
  return std::any_of(warp.groups.begin(), warp.groups.end(), [](const Group& group) { return !group.blocked; });
}

std::string describe_wait(const Warp& warp, const Group& group) {
  std::ostringstream out;
  const Wait& wait = group.wait;
  out << "warp " << warp.index << " (lanes " << Hex{group.mask} << ") ";
  switch (wait.kind) {
    case WaitKind::none: out << "can run"; break;
    case WaitKind::converge: out << "waits for its other lanes (members " << Hex{wait.parity} << ")"; break;
    case WaitKind::barrier: {
      const NamedBarrier& barrier = warp.cta->barriers[wait.address & 15];
      out << "waits at barrier " << wait.address << ", where " << barrier.arrived << " threads of ";
      if (barrier.expects_all) out << "all live ones";
      else out << barrier.expected;
      out << " have arrived";
      break;
    }
    case WaitKind::cluster_barrier: out << "waits at the cluster barrier"; break;
    case WaitKind::mbarrier:
      out << "waits for phase " << wait.parity << " of the mbarrier at " << Hex{wait.address} << " ("
          << describe_barrier(*warp.cta->cluster, wait.address) << ")";
      break;
    case WaitKind::copy_group: out << "waits for cp.async groups"; break;
    case WaitKind::bulk_group: out << "waits for bulk groups"; break;
    case WaitKind::wgmma: out << "waits for wgmma groups, or for the other warps of its warpgroup"; break;
    case WaitKind::other: out << "waits"; break;
  }
  const Place& place = warp.program->places[group.pc];
  out << " at " << warp.program->file_of(place.source) << ":" << place.source.line
      << callers_of(*warp.program, place.source, ", called from ") << " `" << place.text << "`";
  return out.str();
}

[[noreturn]] void deadlock(Cluster& cluster) {
  std::ostringstream all;
  Warp* first = nullptr;
  size_t count = 0;
  bool divergent = false;
  for (const auto& cta : cluster.ctas) {
    for (const auto& warp : cta->warps) {
      for (Group& group : warp->groups) {
        if (warp->done() || group.mask == 0) continue;
        if (first == nullptr) {
          first = warp.get();
          warp->group = &group;
        }
        divergent = divergent || group.wait.kind == WaitKind::converge;
        constexpr size_t kShown = 24;
        if (++count <= kShown) all << "\n  block rank " << cta->rank << ": " << describe_wait(*warp, group);
      }
    }
  }
  if (divergent)
    fault(*first, -1, "divergence", "lanes of a warp wait for lanes that never come to the same .sync instruction; ",
          count, " groups wait:", all.str());
  fault(*first, -1, "deadlock", "no warp can run and no asynchronous operation is pending; ", count, " groups wait:",
        all.str());
}

// Which of the warps that can run is next; null where none can.
Warp* choose_warp(Cluster& cluster, std::vector<Warp*>& warps, size_t& turn) {
  const size_t count = warps.size();
  switch (cluster.grid->schedule) {
    case Schedule::random: {
      turn = cluster.random() % count;
      for (size_t i = 0; i < count; ++i)
        if (Warp* warp = warps[(turn + i) % count]; can_run(*warp)) return warp;
      return nullptr;
    }
    case Schedule::highest:
      for (size_t i = count; i-- > 0;)
        if (can_run(*warps[i])) return warps[i];
      return nullptr;
    case Schedule::lowest:
      for (Warp* warp : warps)
        if (can_run(*warp)) return warp;
      return nullptr;
    default:
      for (size_t i = 0; i < count; ++i) {
        Warp* warp = warps[(turn + i) % count];
        if (!can_run(*warp)) continue;
        turn = (turn + i + 1) % count;
        return warp;
      }
      return nullptr;
  }
}

u64 slice_of(Cluster& cluster) {
  if (cluster.grid->schedule != Schedule::random) return kSlice;
  // Mostly long, sometimes a few instructions: so that warps also meet in the middle of things.
  const u64 dice = cluster.random();
  return dice % 8 == 0 ? 1 + dice / 8 % 64 : kSlice;
}

bool waits_for_mbarrier(const std::vector<Warp*>& warps) {
  for (const Warp* warp : warps)
    for (const Group& group : warp->groups)
      if (!warp->done() && group.wait.kind == WaitKind::mbarrier) return true;
  return false;
}

}  // namespace

bool Cluster::done() const {
  for (const auto& cta : ctas)
    for (const auto& warp : cta->warps)
      if (!warp->done()) return false;
  return true;
}

bool run_cluster(Cluster& cluster, u64 budget) {
  std::vector<Warp*> warps;
  for (const auto& cta : cluster.ctas)
    for (const auto& warp : cta->warps) warps.push_back(warp.get());
  const auto complete_one = agents().complete_one;
  size_t turn = 0;
  int hopeless = 0;
  const u64 begin = cluster.instructions_left;
  while (begin - cluster.instructions_left < budget) {
    if (complete_one) complete_one(cluster, false);
    Warp* warp = choose_warp(cluster, warps, turn);
    if (warp != nullptr) {
      const u64 events = cluster.events;
      run_warp(*warp, slice_of(cluster));
      if (cluster.events != events) hopeless = 0;
      continue;
    }
    if (cluster.done()) {
      if (agents().on_cluster_end) agents().on_cluster_end(cluster);
      return true;
    }
    if (complete_one && complete_one(cluster, true)) {
      wake(cluster);
      hopeless = 0;
      continue;
    }
    if (++hopeless > kHopelessRounds || !waits_for_mbarrier(warps)) deadlock(cluster);
    for (Warp* each : warps) each->time_out = !each->done();
  }
  return false;
}

void end_lanes(Warp& warp, u32 lanes) {
  warp.live &= ~lanes;
  warp.group->mask &= ~lanes;
  warp.cluster_arrived &= ~lanes;
  warp.cluster_unwaited &= ~lanes;
  if (warp.group->mask != 0) ++warp.group->pc;
  if (agents().on_warp_exit) agents().on_warp_exit(warp, lanes);
  settle_barriers(*warp.cta);
  settle_cluster_barrier(cluster_of(warp));
  wake(cluster_of(warp));
}

bool must_converge(Warp& warp, u32 members) {
  Group& group = *warp.group;
  members &= warp.live;
  if ((members & ~group.mask) == 0) {
    group.wait = {};
    return false;
  }
  group.wait = {WaitKind::converge, 0, members, 0};
  return true;
}

bool must_converge_aligned(Warp& warp, u32 mask) {
  Group& group = *warp.group;
  if (mask != group.mask)
    fault(warp, first_lane(group.mask & ~mask), "divergence", "an .aligned instruction is executed by the lanes ",
          Hex{mask}, " and not by the lanes ", Hex{group.mask & ~mask}, ", whose guard is false");
  return must_converge(warp, warp.live);
}

}  // namespace glm5::emulator
