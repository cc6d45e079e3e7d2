#include "race_check.h"

#include <algorithm>

#include "memory.h"

namespace glm5::emulator {

bool Accessor::knows_by_lane(const Epoch& work) const {
  if (work.is_joint) {
    const bool is_own = order != nullptr && work.agent == order->agent() && (work.lanes & lanes);
    return is_own || (work.lanes & view->lanes_at(work.agent, work.clock)) != 0;
  }
  Epoch others = work;
  if (work.agent == agent && work.clock == clock) others.lanes &= ~together;
  if (others.lanes == 0) return true;
  // Of several lanes that act as one each lacks what the others did.
  if (order == nullptr || (lanes & (lanes - 1))) return (others.lanes & ~view->lanes_at(work.agent, work.clock)) == 0;
  return order->knows(__builtin_ctz(lanes), others);
}

RaceCheck::RaceCheck(AgentNumbers agents, u32 blocks, u32 bytes_per_block)
    : agents_(agents),
      chunks_per_block_((bytes_per_block + 15) / 16),
      cells_(blocks * chunks_per_block_),
      splits_(cells_.size()),
      fences_(agents.warps),
      fence_views_(agents.warps) {}

std::array<RaceCheck::Cell, 4> RaceCheck::four_of(const Cell& cell) {
  std::array<Cell, 4> four{cell, cell, cell, cell};
  for (size_t i = 1; i < 4 && cell.more_readers; ++i) {
    lists_.push_back(lists_[cell.more_readers - 1]);
    four[i].more_readers = static_cast<u32>(lists_.size());
  }
  return four;
}

RaceCheck::Words& RaceCheck::words_of(u32 index) {
  if (splits_[index] == 0) {
    if (free_words_.empty()) {
      words_.emplace_back();
      free_words_.push_back(static_cast<u32>(words_.size()));
    }
    splits_[index] = free_words_.back();
    free_words_.pop_back();
    words_[splits_[index] - 1].cells = four_of(cells_[index]);
  }
  return words_[splits_[index] - 1];
}

std::array<RaceCheck::Cell, 4>& RaceCheck::bytes_of(Words& words, u32 word) {
  if (words.bytes[word] == 0) {
    if (free_bytes_.empty()) {
      bytes_.emplace_back();
      free_bytes_.push_back(static_cast<u32>(bytes_.size()));
    }
    words.bytes[word] = free_bytes_.back();
    free_bytes_.pop_back();
    bytes_[words.bytes[word] - 1] = four_of(words.cells[word]);
  }
  return bytes_[words.bytes[word] - 1];
}

// Four cells that one access has written are one again.
bool RaceCheck::unite(const std::array<Cell, 4>& four, Cell& whole) {
  for (size_t i = 1; i < 4; ++i)
    if (!(four[i].writer == four[0].writer)) return false;
  whole = four[0];
  return true;
}

// Bytes [begin, end) of a chunk.
template <class F>
Conflict RaceCheck::each_in_chunk(u32 index, u32 begin, u32 end, bool writes, F visit) {
  if (end - begin == 16 && splits_[index] == 0) return visit(cells_[index]);
  Words& words = words_of(index);
  Conflict conflict;
  for (u32 at = begin; at < end && !conflict;) {
    const u32 word = at / 4, next = std::min(end, word * 4 + 4);
    u32 met = at;
    if (next - at == 4 && words.bytes[word] == 0) {
      conflict = visit(words.cells[word]);
    } else {
      auto& bytes = bytes_of(words, word);
      for (; met < next; ++met)
        if ((conflict = visit(bytes[met % 4]))) break;
      if (writes && next - at == 4 && !conflict && unite(bytes, words.cells[word])) {
        free_bytes_.push_back(words.bytes[word]);
        words.bytes[word] = 0;
      }
    }
    if (conflict) conflict.address = met;
    at = next;
  }
  const bool is_whole = writes && end - begin == 16 && !conflict && words.bytes == std::array<u32, 4>{};
  if (is_whole && unite(words.cells, cells_[index])) {
    free_words_.push_back(splits_[index]);
    splits_[index] = 0;
  }
  return conflict;
}

template <class F>
Conflict RaceCheck::each_cell(u32 address, u32 bytes, bool writes, F visit) {
  const u32 block = (address >> kRankShift) * chunks_per_block_;
  const u32 begin = address & ((1u << kRankShift) - 1), end = begin + bytes;
  for (u32 at = begin; at < end;) {
    const u32 chunk = at / 16, next = std::min(end, chunk * 16 + 16);
    if (chunk >= chunks_per_block_ || block + chunk >= cells_.size()) return {};  // the bounds check has spoken
    Conflict conflict = each_in_chunk(block + chunk, at % 16, at % 16 + next - at, writes, visit);
    if (conflict) {
      conflict.address += (address & ~((1u << kRankShift) - 1)) | chunk * 16;
      return conflict;
    }
    at = next;
  }
  return {};
}

void RaceCheck::note_writer(const Epoch& writer) {
  for (Epoch& each : writers_) {
    if (each.agent != writer.agent || (each.lanes != writer.lanes && each.clock != writer.clock)) continue;
    each.clock = std::max(each.clock, writer.clock);
    each.lanes |= writer.lanes;
    return;
  }
  writers_.push_back(writer);
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

// Whether a generic write reached the async proxy: by a fence of its writer, or of a lane of that warp that knew of the
// write, that the reader knows to be done; or by a fence of the reader after it knew of the write.
bool RaceCheck::is_fenced(const Cell& cell, const Accessor& who) {
  const Epoch& write = cell.writer;
  const AgentKind kind = agents_.kind(write.agent);
  if (kind != AgentKind::warp && kind != AgentKind::cp_async) return true;
  const u32 writer = agents_.index(write.agent);
  const u16 agent = agents_.of(AgentKind::warp, writer);
  const auto& fences = fences_[writer];
  const auto own = [&](const ProxyFence& fence) { return kind == AgentKind::warp ? fence.own : fence.copies; };
  const auto first = std::partition_point(fences.begin(), fences.end(),
                                          [&](const ProxyFence& fence) { return own(fence) < write.clock; });
  for (auto fence = first; fence != fences.end(); ++fence) {
    const u32 others = kind == AgentKind::warp ? fence->others : fence->others_copies;
    if ((write.lanes & ~fence->lanes) && others < write.clock) continue;
    if (who.knows({agent, fence->own, fence->lanes & -fence->lanes})) return true;
    break;
  }
  const Clocks& view = fence_views_[static_cast<u32>(who.proxy_reader)];
  return view.of(write.agent) >= write.clock || (write.lanes & ~view.lanes_at(write.agent, write.clock)) == 0;
}

void RaceCheck::drop_readers(Cell& cell) {
  if (cell.more_readers) {
    lists_[cell.more_readers - 1].clear();
    free_lists_.push_back(cell.more_readers);
  }
  cell.more_readers = 0;
  for (Epoch& each : cell.readers)
    if (each.clock) each = {};
}

// Of the same lanes: who knows of the later work knows of the older.
bool RaceCheck::supersedes(const Epoch& reader, const Epoch& older) {
  return older.agent == reader.agent && older.lanes == reader.lanes && (older.is_joint || !reader.is_joint);
}

// A reader that this one knows of need not be remembered: who knows of this one will know of that one too.
void RaceCheck::add_reader(Cell& cell, const Accessor& who) {
  const Epoch reader{who.agent, who.clock, who.lanes, who.is_joint};
  for (Epoch& each : cell.readers) {
    if (each.agent != reader.agent || each.clock != reader.clock || each.is_joint != reader.is_joint) continue;
    each.lanes |= reader.lanes;
    return;
  }
  if (cell.more_readers) return inflate(cell, who);
  for (Epoch& each : cell.readers) {
    if (each.clock != 0 && !supersedes(reader, each) && !who.knows(each)) continue;
    each = reader;
    return;
  }
  inflate(cell, who);
}

void RaceCheck::inflate(Cell& cell, const Accessor& who) {
  if (cell.more_readers == 0) {
    if (free_lists_.empty()) {
      lists_.emplace_back();
      free_lists_.push_back(static_cast<u32>(lists_.size()));
    }
    cell.more_readers = free_lists_.back();
    free_lists_.pop_back();
  }
  constexpr size_t kExact = 64;  // beyond so many, lanes of a warp are taken together, at the latest clock
  auto& list = lists_[cell.more_readers - 1];
  Epoch reader{who.agent, who.clock, who.lanes, who.is_joint};
  std::erase_if(list, [&](const Epoch& each) {
    if (each.agent != reader.agent || each.is_joint != reader.is_joint) return false;
    const bool is_one = each.clock == reader.clock || (list.size() > kExact && !reader.is_joint);
    if (is_one) reader.lanes |= each.lanes;
    return is_one || each.lanes == reader.lanes || who.knows(each);
  });
  list.push_back(reader);
}

Conflict RaceCheck::read_cell(Cell& cell, const Accessor& who) {
  if (cell.writer.clock && !who.knows(cell.writer)) return {Conflict::Kind::race, true, cell.writer};
  if (who.proxy_reader >= 0 && cell.writer.clock) {
    if (checks_proxy && !is_fenced(cell, who)) return {Conflict::Kind::proxy, true, cell.writer};
    note_writer(cell.writer);
  }
  add_reader(cell, who);
  return {};
}

Conflict RaceCheck::write_cell(Cell& cell, const Accessor& who) {
  if (cell.writer.clock && !who.knows(cell.writer)) return {Conflict::Kind::race, true, cell.writer};
  for (const Epoch& reader : cell.readers)
    if (reader.clock && !who.knows(reader)) return {Conflict::Kind::race, false, reader};
  if (cell.more_readers) {
    for (const Epoch& reader : lists_[cell.more_readers - 1])
      if (!who.knows(reader)) return {Conflict::Kind::race, false, reader};
  }
  drop_readers(cell);
  const bool is_one = who.together && cell.writer.agent == who.agent && cell.writer.clock == who.clock;
  cell.writer = {who.agent, who.clock, who.lanes | (is_one ? cell.writer.lanes : 0)};
  return {};
}

Conflict RaceCheck::read(u32 address, u32 bytes, const Accessor& who) {
  return each_cell(address, bytes, false, [&](Cell& cell) { return read_cell(cell, who); });
}

Conflict RaceCheck::write(u32 address, u32 bytes, const Accessor& who) {
  return each_cell(address, bytes, true, [&](Cell& cell) { return write_cell(cell, who); });
}

}  // namespace glm5::emulator
