#include "async_state.h"

#include <sstream>

#include "report.h"

namespace glm5::emulator {

Site site_of(Warp& warp, int lane) { return {&warp, warp.group->pc, lane}; }

void fault_at(const Site& site, const char* check, const std::string& sentence) {
  Group there;
  there.pc = site.pc;
  there.mask = u32{1} << site.lane;
  Group* const running = site.warp->group;
  site.warp->group = &there;
  Report report = report_at(*site.warp, site.lane, check, sentence);
  site.warp->group = running;
  throw Fault(std::move(report));
}

Accessor accessor_of(Warp& warp, int lane, u32 together) {
  const WarpOrder& order = async_of(warp).order;
  return {.agent = order.agent(), .clock = order.clock(), .view = &order.view(lane),
          .lanes = together ? together : u32{1} << lane, .order = &order};
}

Accessor accessor_by(u16 agent, u32 clock, const Clocks& done, int proxy_reader) {
  return {.agent = agent, .clock = clock, .view = &done, .proxy_reader = proxy_reader};
}

void learn(Warp& warp, u32 lanes, const Clocks& news) { async_of(warp).order.learn(lanes | ~warp.live, news); }

std::string describe_work(Cluster& cluster, const Epoch& work) {
  const AgentNumbers& numbers = async_of(cluster).races.agents();
  const u32 blocks = static_cast<u32>(cluster.ctas.size()), index = numbers.index(work.agent);
  const bool is_group = numbers.kind(work.agent) == AgentKind::wgmma;
  const u32 per_block = (is_group ? numbers.warpgroups : numbers.warps) / blocks;
  std::ostringstream out;
  switch (numbers.kind(work.agent)) {
    case AgentKind::warp:
      if ((work.lanes & (work.lanes - 1)) == 0) {
        out << "lane " << first_lane(work.lanes) << " of ";
      } else if (work.lanes != kAllLanes) {
        out << "lanes " << Hex{work.lanes} << " of ";
      }
      out << "warp ";
      break;
    case AgentKind::copy_in:
      out << "a bulk copy started by warp ";
      break;
    case AgentKind::copy_out:
      out << "a bulk store started by warp ";
      break;
    case AgentKind::cp_async:
      out << "a cp.async of warp ";
      break;
    case AgentKind::wgmma:
      out << "a wgmma of warpgroup ";
      break;
  }
  out << index % per_block;
  if (blocks > 1) out << " of block " << index / per_block << " of the cluster";
  return out.str();
}

void check_conflict(Warp& warp, int lane, const Conflict& conflict, const char* verb) {
  if (!conflict) return;
  const std::string other = describe_work(cluster_of(warp), conflict.other);
  if (conflict.kind == Conflict::Kind::proxy) {
    fault(warp, lane, "proxy", verb, " shared address ", Hex{conflict.address}, " through the async proxy, which ",
          other, " wrote through the generic proxy without a fence.proxy.async since");
  }
  const bool is_own = conflict.other.lanes && async_of(cluster_of(warp)).races.agents().index(conflict.other.agent) ==
                                                  async_of(warp).number;
  fault(warp, lane, "race", verb, " shared address ", Hex{conflict.address}, ", which ", other,
        conflict.with_write ? " wrote" : " reads", ", and nothing orders the two",
        is_own ? ": lanes of one warp need a __syncwarp() between them (a shuffle or a vote orders no memory)" : "");
}

namespace {

void start_cluster(Cluster& cluster) {
  const u32 blocks = static_cast<u32>(cluster.ctas.size());
  const u32 warps = static_cast<u32>(cluster.ctas[0]->warps.size()), groups = (warps + 3) / 4;
  AgentNumbers agents{.warps = blocks * warps, .warpgroups = blocks * groups};
  cluster.async = std::make_shared<AsyncClusterState>(agents, blocks, cluster.ctas[0]->shared_end);
  u32 number = 0;
  for (auto& cta : cluster.ctas) {
    cta->async = std::make_shared<AsyncCtaState>();
    cta->async->warpgroups.resize(groups);
    for (auto& warp : cta->warps) {
      warp->async = std::make_shared<AsyncWarpState>();
      warp->async->number = number;
      warp->async->order = WarpOrder(number++, agents);
    }
  }
}

void end_cluster(Cluster& cluster) {
  finish_copies(cluster);
  cluster.async.reset();
}

void on_release(Warp& warp, u32 lanes, u64 key) {
  async_of(cluster_of(warp)).published[key].join(async_of(warp).order.done_by(lanes | ~warp.live));
}

void on_acquire(Warp& warp, u32 lanes, u64 key) {
  auto& published = async_of(cluster_of(warp)).published;
  if (const auto it = published.find(key); it != published.end()) learn(warp, lanes, it->second);
}

void on_meeting(Warp& warp, u32 lanes) { async_of(warp).order.meet(lanes | ~warp.live); }

// Atomics, and volatile, relaxed, acquire and release accesses. The lanes of one instruction are taken together: what
// one of them acquires all of them know.
void synchronise(Warp& warp, const AccessEvent& event) {
  auto& published = async_of(cluster_of(warp)).published;
  u64 previous = 0;
  const auto each_key = [&](auto f) {
    for (u32 rest = event.mask; rest; rest &= rest - 1) {
      const u64 host = event.hosts[first_lane(rest)];
      if (host != previous) f(host);
      previous = host;
    }
  };
  if (event.access != Access::write) each_key([&](u64 host) { on_acquire(warp, event.mask, host); });
  if (event.access == Access::read) return;
  const Clocks& done = async_of(warp).order.done_by(event.mask | ~warp.live);
  previous = 0;
  each_key([&](u64 host) { published[host].join(done); });
}

// The lanes whose stores by this very instruction meet the bytes of a conflict: run_store says whether they agree.
u32 lanes_that_store(Warp& warp, const AccessEvent& event, const Conflict& conflict) {
  u32 lanes = 0;
  for (u32 rest = conflict.other.lanes & event.mask; rest; rest &= rest - 1) {
    const u32 address = shared_address(warp, event.hosts[first_lane(rest)]);
    if (conflict.address - address < event.bytes) lanes |= rest & -rest;
  }
  return lanes;
}

void on_access(Warp& warp, const Instruction&, const AccessEvent& event) {
  if (event.is_synchronising) return synchronise(warp, event);
  if (!event.is_shared) return;
  RaceCheck& races = async_of(cluster_of(warp)).races;
  WarpOrder& order = async_of(warp).order;
  u32 accessing = event.mask;
  for (u32 rest = event.sets ? event.mask : 0; rest; rest &= rest - 1) accessing |= event.sets[first_lane(rest)];
  order.note_access(accessing);
  for (u32 rest = event.mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u32 address = shared_address(warp, event.hosts[lane]);
    Accessor who = accessor_of(warp, lane, event.sets ? event.sets[lane] : 0);
    if (event.access == Access::read) {
      check_conflict(warp, lane, races.read(address, event.bytes, who), "reads");
      continue;
    }
    Conflict conflict = races.write(address, event.bytes, who);
    const Epoch& other = conflict.other;
    if (conflict && conflict.with_write && other.agent == who.agent && other.clock == who.clock) {
      who.together = lanes_that_store(warp, event, conflict);
      conflict = races.write(address, event.bytes, who);
    }
    check_conflict(warp, lane, conflict, "writes");
  }
}

const bool installed = [] {
  Agents& entries = agents();
  entries.on_cluster_start = start_cluster;
  entries.on_cluster_end = end_cluster;
  entries.complete_one = complete_one_copy;
  entries.on_access = on_access;
  entries.on_release = on_release;
  entries.on_acquire = on_acquire;
  entries.on_meeting = on_meeting;
  return true;
}();

}  // namespace
}  // namespace glm5::emulator
