#include "clocks.h"

#include <algorithm>

namespace glm5::emulator {

void Clocks::grow(size_t agents) {
  if (all_.size() < agents) all_.resize(agents);
}

u32 Clocks::of(u16 agent, int lane) const {
  for (const Lanes& lanes : some_)
    if (lanes.agent == agent) return std::max(of(agent), lanes.clocks[static_cast<size_t>(lane)]);
  return of(agent);
}

u32 Clocks::lanes_at(u16 agent, u32 clock) const {
  if (of(agent) >= clock) return kAllLanes;
  u32 found = 0;
  for (const Lanes& lanes : some_) {
    if (lanes.agent != agent) continue;
    for (size_t i = 0; i < kLanes; ++i) found |= static_cast<u32>(lanes.clocks[i] >= clock) << i;
  }
  return found;
}

void Clocks::raise(u16 agent, u32 clock) {
  grow(agent + size_t{1});
  if (all_[agent] >= clock) return;
  all_[agent] = clock;
  std::erase_if(some_, [&](const Lanes& lanes) {
    return lanes.agent == agent && *std::max_element(lanes.clocks.begin(), lanes.clocks.end()) <= clock;
  });
}

void Clocks::raise(u16 agent, const LaneClocks& clocks) {
  auto at = std::find_if(some_.begin(), some_.end(), [&](const Lanes& lanes) { return lanes.agent == agent; });
  if (at == some_.end()) at = some_.insert(at, {agent, {}});
  u32 least = ~u32{0}, most = 0;
  for (size_t i = 0; i < kLanes; ++i) {
    at->clocks[i] = std::max({at->clocks[i], clocks[i], of(agent)});
    least = std::min(least, at->clocks[i]);
    most = std::max(most, at->clocks[i]);
  }
  grow(agent + size_t{1});
  all_[agent] = std::max(all_[agent], least);
  if (least == most) some_.erase(at);
}

void Clocks::join(const Clocks& other) {
  grow(other.all_.size());
  u32* __restrict to = all_.data();
  for (size_t i = 0; i < other.all_.size(); ++i) to[i] = std::max(to[i], other.all_[i]);
  for (const Lanes& lanes : other.some_) raise(lanes.agent, lanes.clocks);
  std::erase_if(some_, [&](const Lanes& lanes) {
    return *std::max_element(lanes.clocks.begin(), lanes.clocks.end()) <= all_[lanes.agent];
  });
}

bool Clocks::covers(const Clocks& other) const {
  const size_t both = std::min(all_.size(), other.all_.size());
  u32 ahead = 0;  // without branches: the usual answer is yes
  for (size_t i = 0; i < both; ++i) ahead |= static_cast<u32>(other.all_[i] > all_[i]);
  for (size_t i = both; i < other.all_.size(); ++i) ahead |= other.all_[i];
  if (ahead) return false;
  for (const Lanes& lanes : other.some_)
    for (int lane = 0; lane < kLanes; ++lane)
      if (lanes.clocks[static_cast<size_t>(lane)] > of(lanes.agent, lane)) return false;
  return true;
}

void Clocks::clear() {
  std::fill(all_.begin(), all_.end(), 0);
  some_.clear();
}

}  // namespace glm5::emulator
