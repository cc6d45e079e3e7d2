// Races in shared memory by happens-before, and generic writes that the async proxy reads without a proxy fence.
//
// Every agent that touches the shared memory of a cluster has a clock: each warp; a warp's bulk copies into shared
// memory, its bulk copies out of it and its cp.async; and each warpgroup's wgmma. A view says how far each agent's work
// is known to be done. An access is a race where the last conflicting one is not in the view of who makes it. Lanes of
// a warp are not told apart.
#pragma once

#include <array>
#include <deque>
#include <string>
#include <vector>

#include "core/types.h"

namespace glm5::emulator {

using Clocks = std::vector<u32>;
void join(Clocks& into, const Clocks& from);

// A warp's fence.proxy.async: what it had done by then.
struct ProxyFence {
  u32 own, copies;  // clocks of the warp and of its cp.async
};

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

struct Epoch {
  u16 agent = 0;
  u32 clock = 0;
};

// What is wrong with an access.
struct Conflict {
  enum class Kind : int { none, race, proxy } kind = Kind::none;
  bool with_write = false;
  Epoch other;
  u32 address = 0;
  explicit operator bool() const { return kind != Kind::none; }
};

// Who makes an access.
struct Accessor {
  u16 agent;
  u32 clock;
  const Clocks* view;
  int proxy_reader = -1;  // async-proxy reads: the warp whose fences also count; -1: the generic proxy
};

class RaceCheck {
 public:
  RaceCheck(AgentNumbers agents, u32 blocks, u32 bytes_per_block);

  // address: shared::cluster, bytes within one block.
  Conflict read(u32 address, u32 bytes, const Accessor& who);
  Conflict write(u32 address, u32 bytes, const Accessor& who);
  // The writers of the chunks read since the last call: the latest epoch of each.
  std::vector<Epoch> take_writers();
  void fence(u32 warp, ProxyFence fence, const Clocks& view);
  const AgentNumbers& agents() const { return agents_; }
  bool checks_proxy = true;

 private:
  struct Cell {
    u32 write_clock = 0, read_clock[2] = {};
    u16 write_agent = 0, read_agent[2] = {};
    u32 readers = 0;  // index of a clock per agent, where more than two read
  };
  template <class F>
  Conflict each_cell(u32 address, u32 bytes, F visit);
  Conflict read_cell(Cell& cell, const Accessor& who);
  Conflict write_cell(Cell& cell, const Accessor& who);
  void add_reader(Cell& cell, const Accessor& who);
  void inflate(Cell& cell, const Accessor& who);
  void drop_readers(Cell& cell);
  bool is_fenced(const Cell& cell, const Accessor& who);
  std::array<Cell, 4>& split(u32 chunk);
  void note_writer(const Cell& cell);

  AgentNumbers agents_;
  u32 chunks_per_block_;
  std::vector<Cell> cells_;  // of 16 bytes
  std::vector<u32> splits_;  // index + 1 of four cells of 4 bytes
  std::deque<std::array<Cell, 4>> fours_;
  std::deque<Clocks> readers_;  // 1-based by Cell::readers
  std::vector<u32> free_readers_;
  std::vector<std::vector<ProxyFence>> fences_;  // by warp, ascending
  std::vector<Clocks> fence_views_;              // by warp: at its last fence
  std::vector<Epoch> writers_;
};

}  // namespace glm5::emulator
