#include "residency.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <sstream>
#include <thread>

#include "agents.h"
#include "debug.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"
#include "specials.h"
#include "touched.h"
#include "traffic.h"

namespace glm5::emulator {
namespace {

constexpr u32 kMultiprocessors = 132;
// A cluster that has not ended after so many instructions may wait for one that has not begun: the next one is
// admitted.
constexpr u64 kPatience = 1'000'000;
constexpr u64 kLocalAlignment = 4096;

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
  if (const u64 local = u64{program.local_bytes} * kLanes) {
    Cluster& cluster = *cta.cluster;
    warp->local = Memory::instance().open_local(cluster.window, cluster.local_bytes, local);
    cluster.local_bytes += (local + kLocalAlignment) / kLocalAlignment * kLocalAlignment;
  }
  warp->groups.emplace_back().mask = warp->live;
  watch_if_wanted(*warp, cta.cluster->grid->watch);
  return warp;
}

// What the thread that runs a cluster counts into.
struct Tally {
  Hits* hits;
  Traffic* traffic;
};

std::unique_ptr<Cluster> make_cluster(Grid& grid, u32 index, int window, Tally tally) {
  auto cluster = std::make_unique<Cluster>();
  cluster->grid = &grid;
  cluster->random.seed(grid.seed + 0xd1342543de82ef95 * index);
  cluster->instructions_left = grid.instruction_limit;
  cluster->hits = tally.hits;
  cluster->traffic = tally.traffic;
  const u32 shape[3] = {grid.cluster_shape[0], grid.cluster_shape[1], grid.cluster_shape[2]};
  const u32 clusters[3] = {grid.blocks[0] / shape[0], grid.blocks[1] / shape[1], grid.blocks[2] / shape[2]};
  cluster->id[0] = index % clusters[0];
  cluster->id[1] = index / clusters[0] % clusters[1];
  cluster->id[2] = index / clusters[0] / clusters[1];
  cluster->window = window;
  cluster->shared = Memory::instance().window(window);
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

// A shared window, for as long as this lives.
struct Window {
  const int number = Memory::instance().take_window();
  Window() = default;
  Window(const Window&) = delete;
  ~Window() { Memory::instance().return_window(number); }
};

struct Resident {
  Window window;
  std::unique_ptr<Cluster> cluster;
};

u32 clusters_of(const Grid& grid) { return grid.blocks[0] * grid.blocks[1] * grid.blocks[2] / grid.cluster_ctas(); }

// Executors count into the program, which the grid only reads.
Tally tally_of(const Grid& grid) { return {const_cast<Hits*>(grid.program->hits.data()), grid.traffic}; }

// Clusters that may wait for one another: all that the device holds take turns, on this thread.
void run_together(Grid& grid) {
  const u32 total = clusters_of(grid), most = std::max<u32>(kMultiprocessors / grid.cluster_ctas(), 1);
  std::list<Resident> resident;
  u64 left = grid.instruction_limit;
  u32 next = 0;
  while (next < total || !resident.empty()) {
    if (next < total && resident.size() < most) {
      Resident& added = resident.emplace_back();
      added.cluster = make_cluster(grid, next++, added.window.number, tally_of(grid));
    }
    for (auto it = resident.begin(); it != resident.end();) {
      it->cluster->instructions_left = left;
      const bool has_ended = run_cluster(*it->cluster, kPatience);
      left = it->cluster->instructions_left;
      it = has_ended ? resident.erase(it) : std::next(it);
    }
  }
}

// Clusters that have nothing to do with each other: one after the other, on as many threads as there are.
//
// Each has its own schedule, and what each touches in device memory is compared with what the others touch: where one
// writes what another reads or writes, the result would depend on their order, and the launch fails. What is reported
// is what the cluster with the lowest number did, whichever thread was faster.
class Apart {
 public:
  explicit Apart(Grid& grid) : grid_(grid), total_(clusters_of(grid)) {}

  void run() {
    u32 wanted = grid_.threads_of_host ? grid_.threads_of_host : std::max(std::thread::hardware_concurrency(), 1u);
    wanted = std::min(wanted, total_);
    std::vector<std::vector<Hits>> hits(wanted - 1, std::vector<Hits>(grid_.program->hits.size()));
    std::vector<Traffic> traffic(wanted - 1);
    const Tally all = tally_of(grid_);
    {
      std::vector<std::jthread> others;
      for (size_t i = 0; i < hits.size(); ++i)
        others.emplace_back([&, i] { work({hits[i].data(), all.traffic ? &traffic[i] : nullptr}); });
      work(all);
    }
    for (const auto& own : hits)
      for (size_t i = 0; i < own.size(); ++i) all.hits[i] += own[i];
    for (const Traffic& own : traffic)
      if (all.traffic) *all.traffic += own;
    if (first_problem_) std::rethrow_exception(first_problem_);
  }

 private:
  struct Ended {
    std::unique_ptr<TouchedBytes> touched;
    std::exception_ptr problem;
  };

  void work(Tally tally) {
    const Window window;
    for (u32 index = next_++; index < total_ && index < failed_; index = next_++) {
      Ended ended{std::make_unique<TouchedBytes>(), nullptr};
      try {
        const auto cluster = make_cluster(grid_, index, window.number, tally);
        cluster->touched = total_ > 1 ? ended.touched.get() : nullptr;
        while (!run_cluster(*cluster, kPatience))
          if (index > failed_) return;
      } catch (...) {
        ended.problem = std::current_exception();
      }
      settle(index, std::move(ended));
    }
  }

  // Clusters are judged in the order of their numbers.
  void settle(u32 index, Ended ended) {
    const std::lock_guard lock(mutex_);
    if (ended.problem) failed_ = std::min<u32>(failed_, index);
    ended_[index] = std::move(ended);
    for (auto it = ended_.find(judged_); it != ended_.end() && !first_problem_; it = ended_.find(++judged_)) {
      first_problem_ = it->second.problem;
      if (const u64 address = first_problem_ ? 0 : all_.add(*it->second.touched)) {
        first_problem_ = std::make_exception_ptr(conflict(judged_, address));
        failed_ = std::min<u32>(failed_, judged_);
      }
      ended_.erase(it);
    }
  }

  Fault conflict(u32 index, u64 address) const {
    const Extent& extent = *Memory::instance().find(address);
    std::ostringstream sentence;
    sentence << "cluster " << index << " and one before it use byte " << address - extent.begin << " of " << extent.name
             << ", at least one of them writes it, and nothing orders the two";
    Report report;
    report.check = "race";
    report.kernel = demangled(grid_.program->kernel);
    report.sentence = sentence.str();
    return Fault(report);
  }

  Grid& grid_;
  const u32 total_;
  std::atomic<u32> next_ = 0, failed_ = ~u32{0};  // failed_: the lowest cluster that is known to fail
  std::mutex mutex_;                              // of what follows
  std::map<u32, Ended> ended_;                    // and not judged yet
  u32 judged_ = 0;
  TouchedBytes all_;
  std::exception_ptr first_problem_;
};

}  // namespace

void run_grid(Grid& grid) {
  // Host memory is not recorded.
  if (grid.program->talks || Memory::instance().allows_host_pointers) run_together(grid);
  else Apart(grid).run();
  if (agents().on_launch_end) agents().on_launch_end(grid);
}

}  // namespace glm5::emulator
