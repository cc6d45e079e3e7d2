// How far the work of a cluster's agents is known to be done: a clock for each agent, and, of an agent whose lanes are
// known to different extents, one for each lane.
#pragma once

#include <array>
#include <vector>

#include "program.h"

namespace glm5::emulator {

// A piece of work: what an agent, or some of its lanes, did while its clock showed this. No lanes: of the agent as
// such.
struct Epoch {
  Epoch() = default;
  Epoch(u16 its_agent, u32 its_clock, u32 its_lanes = 0, bool is_joint_work = false)
      : agent(its_agent), is_joint(is_joint_work), clock(its_clock), lanes(its_lanes) {}
  u16 agent = 0;
  bool is_joint = false;  // done by the lanes as one, before any of them goes on: who knows of one lane knows of it
  u32 clock = 0;
  u32 lanes = 0;
  bool operator==(const Epoch&) const = default;
};

using LaneClocks = std::array<u32, kLanes>;

class Clocks {
 public:
  explicit Clocks(u32 agents = 0) : all_(agents) {}
  u32 of(u16 agent) const { return agent < all_.size() ? all_[agent] : 0; }  // of all its lanes
  u32 of(u16 agent, int lane) const;
  // The lanes of the agent whose work is known up to the clock.
  u32 lanes_at(u16 agent, u32 clock) const;
  void raise(u16 agent, u32 clock);
  void raise(u16 agent, const LaneClocks& clocks);
  void join(const Clocks& other);
  bool covers(const Clocks& other) const;
  void clear();

 private:
  struct Lanes {
    u16 agent;
    LaneClocks clocks;
  };
  void grow(size_t agents);
  std::vector<u32> all_;
  std::vector<Lanes> some_;  // few: lanes that are ahead of the others
};

}  // namespace glm5::emulator
