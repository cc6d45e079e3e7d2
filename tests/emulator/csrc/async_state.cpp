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

void publish(Warp& warp, Clocks& object) {
  AsyncWarpState& state = async_of(warp);
  join(object, state.view);
  ++state.view[state.number];
}

Accessor accessor_of(Warp& warp) {
  const AsyncWarpState& state = async_of(warp);
  return {static_cast<u16>(state.number), state.view[state.number], &state.view};
}

std::string describe_agent(Cluster& cluster, u16 agent) {
  const AgentNumbers& numbers = async_of(cluster).races.agents();
  const u32 blocks = static_cast<u32>(cluster.ctas.size()), index = numbers.index(agent);
  const bool is_group = numbers.kind(agent) == AgentKind::wgmma;
  const u32 per_block = (is_group ? numbers.warpgroups : numbers.warps) / blocks;
  std::ostringstream out;
  switch (numbers.kind(agent)) {
    case AgentKind::warp:
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
  const std::string other = describe_agent(cluster_of(warp), conflict.other.agent);
  if (conflict.kind == Conflict::Kind::proxy) {
    fault(warp, lane, "proxy", verb, " shared address ", Hex{conflict.address}, " through the async proxy, which ",
          other, " wrote through the generic proxy without a fence.proxy.async since");
  }
  fault(warp, lane, "race", verb, " shared address ", Hex{conflict.address}, ", which ", other,
        conflict.with_write ? " wrote" : " reads", ", and nothing orders the two");
}

namespace {

void start_cluster(Cluster& cluster) {
  const u32 blocks = static_cast<u32>(cluster.ctas.size());
  const u32 warps = static_cast<u32>(cluster.ctas[0]->warps.size()), groups = (warps + 3) / 4;
  AgentNumbers agents{.warps = blocks * warps, .warpgroups = blocks * groups};
  cluster.async = std::make_shared<AsyncClusterState>(agents, blocks);
  u32 number = 0;
  for (auto& cta : cluster.ctas) {
    cta->async = std::make_shared<AsyncCtaState>();
    cta->async->warpgroups.resize(groups);
    for (auto& warp : cta->warps) {
      warp->async = std::make_shared<AsyncWarpState>();
      warp->async->number = number;
      warp->async->view.assign(agents.count(), 0);
      warp->async->view[number++] = 1;
    }
  }
}

void end_cluster(Cluster& cluster) {
  finish_copies(cluster);
  cluster.async.reset();
}

void on_release(Warp& warp, u64 key) { publish(warp, async_of(cluster_of(warp)).published[key]); }

void on_acquire(Warp& warp, u64 key) {
  auto& published = async_of(cluster_of(warp)).published;
  if (const auto it = published.find(key); it != published.end()) join(async_of(warp).view, it->second);
}

void on_access(Warp& warp, const Instruction&, const AccessEvent& event) {
  if (!event.is_shared && !event.is_synchronising) return;
  Cluster& cluster = cluster_of(warp);
  RaceCheck& races = async_of(cluster).races;
  const Accessor who = accessor_of(warp);
  for (u32 rest = event.mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u64 host = event.hosts[lane];
    if (event.is_synchronising) {
      if (event.access != Access::write) on_acquire(warp, host);
      if (event.access != Access::read) on_release(warp, host);
      continue;
    }
    const u32 address = shared_address(warp, host);
    if (event.access == Access::read) {
      check_conflict(warp, lane, races.read(address, event.bytes, who), "reads");
    } else {
      check_conflict(warp, lane, races.write(address, event.bytes, who), "writes");
    }
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
  return true;
}();

}  // namespace
}  // namespace glm5::emulator
