#include "residency.h"

#include <algorithm>
#include <cstring>
#include <list>

#include "agents.h"
#include "debug.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "specials.h"

namespace glm5::emulator {
namespace {

constexpr u32 kMultiprocessors = 132;
// A cluster that has not ended after so many instructions may wait for one that has not begun: the next one is
// admitted.
constexpr u64 kPatience = 1'000'000;

std::unique_ptr<Warp> make_warp(Cta& cta, int index, u32 lanes) {
  const Program& program = *cta.cluster->grid->program;
  auto warp = std::make_unique<Warp>();
  warp->cta = &cta;
  warp->program = &program;
  warp->index = index;
  warp->live = lanes == kLanes ? kAllLanes : (u32{1} << lanes) - 1;
  warp->registers.resize(program.register_bytes + kLanes);
  warp->specials.resize(static_cast<u32>(Special::count) * kSpecialRowBytes);
  warp->base[static_cast<int>(Region::registers)] = warp->registers.data();
  warp->base[static_cast<int>(Region::constants)] = program.constants.data();
  warp->base[static_cast<int>(Region::specials)] = warp->specials.data();
  if (program.local_bytes) warp->local = Memory::instance().take_local(u64{program.local_bytes} * kLanes);
  warp->groups.emplace_back().mask = warp->live;
  watch_if_wanted(*warp, cta.cluster->grid->watch);
  return warp;
}

std::unique_ptr<Cluster> make_cluster(Grid& grid, u32 index) {
  auto cluster = std::make_unique<Cluster>();
  cluster->grid = &grid;
  const u32 shape[3] = {grid.cluster_shape[0], grid.cluster_shape[1], grid.cluster_shape[2]};
  const u32 clusters[3] = {grid.blocks[0] / shape[0], grid.blocks[1] / shape[1], grid.blocks[2] / shape[2]};
  cluster->id[0] = index % clusters[0];
  cluster->id[1] = index / clusters[0] % clusters[1];
  cluster->id[2] = index / clusters[0] / clusters[1];
  cluster->window = Memory::instance().take_window();
  cluster->shared = Memory::instance().window(cluster->window);
  const Program& program = *grid.program;
  const u32 alignment = program.dynamic_shared_alignment;
  const u32 static_end = kFirstShared + program.static_shared_bytes;
  const u32 end = (static_end + alignment - 1) / alignment * alignment + grid.dynamic_shared_bytes;
  for (u32 rank = 0; rank < grid.cluster_ctas(); ++rank) {
    auto cta = std::make_unique<Cta>();
    cta->cluster = cluster.get();
    cta->rank = rank;
    const u32 place[3] = {rank % shape[0], rank / shape[0] % shape[1], rank / shape[0] / shape[1]};
    for (int d = 0; d < 3; ++d) cta->id[d] = cluster->id[d] * shape[d] + place[d];
    cta->shared_address = rank << kRankShift;
    cta->shared_end = grid.dynamic_shared_bytes ? end : static_end;
    u8* own = cluster->shared + cta->shared_address + kFirstShared;
    std::memset(Memory::shadow(u64(own)), kUninitialised, cta->shared_end - kFirstShared);
    // What a kernel must not rely on looks different from zeros.
    std::memset(own, 0xcd, cta->shared_end - kFirstShared);
    const u32 threads = grid.thread_count();
    for (u32 first = 0; first < threads; first += kLanes)
      cta->warps.push_back(make_warp(*cta, static_cast<int>(first / kLanes), std::min<u32>(kLanes, threads - first)));
    cluster->ctas.push_back(std::move(cta));
  }
  for (const auto& cta : cluster->ctas)
    for (const auto& warp : cta->warps) fill_specials(*warp);
  if (agents().on_cluster_start) agents().on_cluster_start(*cluster);
  return cluster;
}

struct Window {
  std::list<std::unique_ptr<Cluster>>& resident;
  ~Window() {
    for (const auto& cluster : resident) Memory::instance().return_window(cluster->window);
    Memory::instance().reset_local();
  }
};

}  // namespace

void run_grid(Grid& grid) {
  const u32 ctas = grid.cluster_ctas();
  const u32 total = grid.blocks[0] * grid.blocks[1] * grid.blocks[2] / ctas;
  const u32 most = std::max<u32>(kMultiprocessors / ctas, 1);
  std::list<std::unique_ptr<Cluster>> resident;
  const Window window{resident};
  u32 next = 0;
  while (next < total || !resident.empty()) {
    if (next < total && resident.size() < most) resident.push_back(make_cluster(grid, next++));
    for (auto it = resident.begin(); it != resident.end();) {
      if (!run_cluster(**it, kPatience)) {
        ++it;
        continue;
      }
      Memory::instance().return_window((*it)->window);
      it = resident.erase(it);
    }
    if (resident.empty()) Memory::instance().reset_local();
  }
  if (agents().on_launch_end) agents().on_launch_end(grid);
}

}  // namespace glm5::emulator
