#include "race_check.h"

#include <algorithm>

#include "memory.h"

namespace glm5::emulator {

void join(Clocks& into, const Clocks& from) {
  if (into.size() < from.size()) into.resize(from.size());
  u32* __restrict to = into.data();
  for (size_t i = 0; i < from.size(); ++i) to[i] = std::max(to[i], from[i]);
}

RaceCheck::RaceCheck(AgentNumbers agents, u32 blocks, u32 bytes_per_block)
    : agents_(agents),
      chunks_per_block_((bytes_per_block + 15) / 16),
      cells_(blocks * chunks_per_block_),
      splits_(cells_.size()),
      fences_(agents.warps),
      fence_views_(agents.warps) {}

std::array<RaceCheck::Cell, 4>& RaceCheck::split(u32 chunk) {
  if (splits_[chunk]) return fours_[splits_[chunk] - 1];
  const Cell whole = cells_[chunk];
  std::array<Cell, 4> four{whole, whole, whole, whole};
  if (whole.readers) {
    for (int i = 1; i < 4; ++i) {
      readers_.push_back(readers_[whole.readers - 1]);
      four[i].readers = static_cast<u32>(readers_.size());
    }
  }
  fours_.push_back(four);
  splits_[chunk] = static_cast<u32>(fours_.size());
  return fours_.back();
}

template <class F>
Conflict RaceCheck::each_cell(u32 address, u32 bytes, F visit) {
  const u32 block = (address >> kRankShift) * chunks_per_block_;
  const u32 begin = address & ((1u << kRankShift) - 1), end = begin + bytes;
  for (u32 at = begin; at < end;) {
    const u32 chunk = at / 16, next = std::min(end, chunk * 16 + 16);
    if (chunk >= chunks_per_block_ || block + chunk >= cells_.size()) return {};  // the bounds check has spoken
    Conflict conflict;
    const bool is_whole = at % 16 == 0 && next == chunk * 16 + 16;
    if (is_whole && !splits_[block + chunk]) {
      conflict = visit(cells_[block + chunk]);
    } else {
      auto& four = split(block + chunk);
      for (u32 i = at % 16 / 4; i <= (next - 1) % 16 / 4 && !conflict; ++i) conflict = visit(four[i]);
    }
    if (conflict) {
      conflict.address = (address & ~((1u << kRankShift) - 1)) | at;
      return conflict;
    }
    at = next;
  }
  return {};
}

void RaceCheck::note_writer(const Cell& cell) {
  for (Epoch& writer : writers_) {
    if (writer.agent != cell.write_agent) continue;
    writer.clock = std::max(writer.clock, cell.write_clock);
    return;
  }
  writers_.push_back({cell.write_agent, cell.write_clock});
}

std::vector<Epoch> RaceCheck::take_writers() {
  std::vector<Epoch> taken;
  taken.swap(writers_);
  return taken;
}

void RaceCheck::fence(u32 warp, ProxyFence fence, const Clocks& view) {
  fences_[warp].push_back(fence);
  fence_views_[warp] = view;
}

// Whether a generic write reached the async proxy: by a fence of its writer that the reader knows to be done, or by one
// of the reader after it knew of the write.
bool RaceCheck::is_fenced(const Cell& cell, const Accessor& who) {
  const AgentKind kind = agents_.kind(cell.write_agent);
  if (kind != AgentKind::warp && kind != AgentKind::cp_async) return true;
  const u32 writer = agents_.index(cell.write_agent);
  const u32 known = (*who.view)[agents_.of(AgentKind::warp, writer)];
  const auto& fences = fences_[writer];
  const auto covers = [&](const ProxyFence& fence) {
    return (kind == AgentKind::warp ? fence.own : fence.copies) >= cell.write_clock;
  };
  const auto first =
      std::partition_point(fences.begin(), fences.end(), [&](const ProxyFence& f) { return !covers(f); });
  if (first != fences.end() && first->own <= known) return true;
  const Clocks& view = fence_views_[who.proxy_reader];
  return cell.write_agent < view.size() && view[cell.write_agent] >= cell.write_clock;
}

void RaceCheck::drop_readers(Cell& cell) {
  if (cell.readers) free_readers_.push_back(cell.readers);
  cell.readers = 0;
  cell.read_clock[0] = cell.read_clock[1] = 0;
}

void RaceCheck::add_reader(Cell& cell, const Accessor& who) {
  if (cell.readers) {
    readers_[cell.readers - 1][who.agent] = who.clock;
    return;
  }
  for (const int i : {0, 1}) {
    const bool is_free = cell.read_clock[i] == 0 || cell.read_agent[i] == who.agent;
    if (!is_free && cell.read_clock[i] > (*who.view)[cell.read_agent[i]]) continue;
    cell.read_agent[i] = who.agent;
    cell.read_clock[i] = who.clock;
    return;
  }
  inflate(cell, who);
}

void RaceCheck::inflate(Cell& cell, const Accessor& who) {
  if (free_readers_.empty()) {
    readers_.emplace_back();
    free_readers_.push_back(static_cast<u32>(readers_.size()));
  }
  cell.readers = free_readers_.back();
  free_readers_.pop_back();
  Clocks& all = readers_[cell.readers - 1];
  all.assign(agents_.count(), 0);
  for (const int i : {0, 1}) all[cell.read_agent[i]] = cell.read_clock[i];
  all[who.agent] = who.clock;
}

Conflict RaceCheck::read_cell(Cell& cell, const Accessor& who) {
  if (cell.write_clock > (*who.view)[cell.write_agent]) {
    return {Conflict::Kind::race, true, {cell.write_agent, cell.write_clock}};
  }
  if (who.proxy_reader >= 0 && cell.write_clock) {
    if (checks_proxy && !is_fenced(cell, who)) {
      return {Conflict::Kind::proxy, true, {cell.write_agent, cell.write_clock}};
    }
    note_writer(cell);
  }
  add_reader(cell, who);
  return {};
}

Conflict RaceCheck::write_cell(Cell& cell, const Accessor& who) {
  const Clocks& view = *who.view;
  if (cell.write_clock > view[cell.write_agent])
    return {Conflict::Kind::race, true, {cell.write_agent, cell.write_clock}};
  if (cell.readers) {
    const Clocks& all = readers_[cell.readers - 1];
    u32 late = 0;
    for (size_t i = 0; i < all.size(); ++i) late |= all[i] > view[i];
    if (late) {
      for (size_t i = 0; i < all.size(); ++i) {
        if (all[i] > view[i]) return {Conflict::Kind::race, false, {static_cast<u16>(i), all[i]}};
      }
    }
  } else {
    for (const int i : {0, 1}) {
      if (cell.read_clock[i] > view[cell.read_agent[i]]) {
        return {Conflict::Kind::race, false, {cell.read_agent[i], cell.read_clock[i]}};
      }
    }
  }
  drop_readers(cell);
  cell.write_agent = who.agent;
  cell.write_clock = who.clock;
  return {};
}

Conflict RaceCheck::read(u32 address, u32 bytes, const Accessor& who) {
  return each_cell(address, bytes, [&](Cell& cell) { return read_cell(cell, who); });
}

Conflict RaceCheck::write(u32 address, u32 bytes, const Accessor& who) {
  return each_cell(address, bytes, [&](Cell& cell) { return write_cell(cell, who); });
}

}  // namespace glm5::emulator
