// What the lanes of a warp know of the work of others, and of one another's.
//
// Under independent thread scheduling a lane knows what another lane of its warp did only once the two have met: at a
// bar.warp.sync of both (__syncwarp), at a barrier of the block or the cluster, through an mbarrier or an atomic, or at
// a wgmma, which needs all lanes. That they execute one instruction together orders nothing, and neither do shfl, vote,
// match, redux, elect, ldmatrix or mma: they bring values of registers, and the CUDA manual says of them that they imply
// no memory barrier.
#pragma once

#include <vector>

#include "clocks.h"

namespace glm5::emulator {

enum class AgentKind : int { warp, copy_in, copy_out, cp_async, wgmma };

// The numbers of a cluster's agents.
struct AgentNumbers {
  u32 warps = 0, warpgroups = 0;
  u16 of(AgentKind kind, u32 index) const { return static_cast<u16>(static_cast<u32>(kind) * warps + index); }
  AgentKind kind(u16 agent) const {
    return agent >= 4 * warps ? AgentKind::wgmma : static_cast<AgentKind>(agent / warps);
  }
  u32 index(u16 agent) const { return agent >= 4 * warps ? agent - 4 * warps : agent % warps; }
  u32 count() const { return 4 * warps + warpgroups; }
};

// Copies that a warp's lanes start and wait for, each lane for its own.
struct OwnCopies {
  u16 agent = 0;
  u32 clock = 0;       // instructions so far
  LaneClocks last{};   // of each lane: the last one that it took part in
  LaneClocks done{};   // and up to which it has waited
};

class WarpOrder {
 public:
  WarpOrder() = default;
  WarpOrder(u32 number, const AgentNumbers& agents);

  u16 agent() const { return agent_; }
  u32 clock() const { return clock_; }
  // What a lane knows of all but its own lane's work.
  const Clocks& view(int lane) const;
  // Whether a lane knows of work; its own it always knows.
  bool knows(int lane, const Epoch& work) const;
  // The lanes that know the same as `lane`.
  u32 party(int lane) const;

  void note_access(u32 lanes);
  // What the lanes have done and know, for others to learn; valid until the next call. What they do next comes later.
  const Clocks& done_by(u32 lanes);
  void learn(u32 lanes, const Clocks& news);
  // Each of the lanes learns what the others have done and know.
  void meet(u32 lanes);

  OwnCopies copies_out, cp_async;
  void start(OwnCopies& copies, u32 lanes);
  void wait(OwnCopies& copies, int lane, u32 clock);

 private:
  struct Party {
    u32 lanes;
    Clocks view;
  };
  const Party& party_of(int lane) const;
  void claim(u16 agent, u32 clock, u32 lanes, const LaneClocks& by_lane, const LaneClocks& last);

  u16 agent_ = 0;
  u32 clock_ = 1;
  LaneClocks last_{};           // clock of each lane's last access
  std::vector<Party> parties_;  // every lane is in one
  Clocks done_;
};

}  // namespace glm5::emulator
