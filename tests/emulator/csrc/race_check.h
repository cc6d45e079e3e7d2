// Races in shared memory by happens-before, and generic writes that the async proxy reads without a proxy fence.
//
// Every agent that touches the shared memory of a cluster has a clock: each warp; a warp's bulk copies into shared
// memory, its bulk copies out of it and its cp.async; and each warpgroup's wgmma. What lanes do is known by lane: the
// work of a warp, its cp.async and its bulk copies out. An access is a race where the last conflicting one is not known
// to who makes it. Bytes are told apart.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/types.h"
#include "warp_order.h"

namespace glm5::emulator {

// A warp's fence.proxy.async: what was done by then.
struct ProxyFence {
  u32 lanes = kAllLanes;      // who fenced
  u32 own, copies;            // clocks of the warp and of its cp.async: what those lanes did themselves
  u32 others, others_copies;  // and what all lanes did, as far as those lanes know
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
  const Clocks* view;                // what is known, but for an own lane's work
  int proxy_reader = -1;             // async-proxy reads: the warp whose fences also count; -1: the generic proxy
  u32 lanes = 0;                     // none: the agent as such
  const WarpOrder* order = nullptr;  // where `lanes` are some: their warp
  u32 together = 0;                  // lanes that write the same bytes by the same instruction
  bool is_joint = false;             // a read that is over before any of `lanes` goes on
  bool knows(const Epoch& work) const {
    if (work.clock <= view->of(work.agent)) return true;
    const bool is_own = order != nullptr && work.agent == order->agent() && work.agent == agent;
    if (is_own && work.lanes == lanes && (lanes & (lanes - 1)) == 0) return true;  // a lane's own, as most are
    return work.lanes != 0 && knows_by_lane(work);
  }

 private:
  bool knows_by_lane(const Epoch& work) const;
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
    Epoch writer;
    Epoch readers[2];
    u32 more_readers = 0;  // index + 1 of a list, where more than two read
  };
  struct Words {
    std::array<Cell, 4> cells;
    std::array<u32, 4> bytes{};  // index + 1 of four cells of a byte
  };
  template <class F>
  Conflict each_cell(u32 address, u32 bytes, bool writes, F visit);
  template <class F>
  Conflict each_in_chunk(u32 index, u32 begin, u32 end, bool writes, F visit);
  Conflict read_cell(Cell& cell, const Accessor& who);
  Conflict write_cell(Cell& cell, const Accessor& who);
  static bool supersedes(const Epoch& reader, const Epoch& older);
  void add_reader(Cell& cell, const Accessor& who);
  void inflate(Cell& cell, const Accessor& who);
  void drop_readers(Cell& cell);
  bool is_fenced(const Cell& cell, const Accessor& who);
  std::array<Cell, 4> four_of(const Cell& cell);
  Words& words_of(u32 index);
  std::array<Cell, 4>& bytes_of(Words& words, u32 word);
  static bool unite(const std::array<Cell, 4>& four, Cell& whole);
  void note_writer(const Epoch& writer);

  AgentNumbers agents_;
  u32 chunks_per_block_;
  std::vector<Cell> cells_;  // of 16 bytes
  std::vector<u32> splits_;  // index + 1 of the words
  std::vector<Words> words_;
  std::vector<std::array<Cell, 4>> bytes_;
  std::vector<std::vector<Epoch>> lists_;  // 1-based by Cell::more_readers
  std::vector<u32> free_lists_, free_words_, free_bytes_;
  std::vector<std::vector<ProxyFence>> fences_;  // by warp, ascending
  std::vector<Clocks> fence_views_;              // by warp: at its last fence
  std::vector<Epoch> writers_;
};

}  // namespace glm5::emulator
