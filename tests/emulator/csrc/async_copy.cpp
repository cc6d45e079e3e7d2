// The asynchronous copies under way: which completes next, and what completing does.
#include <algorithm>
#include <cstring>

#include "async_state.h"
#include "report.h"

namespace glm5::emulator {
namespace {

// Arrivals wait for the earlier cp.async of their lanes.
bool may_complete(const AsyncClusterState& state, const PendingCopy& copy) {
  if (copy.kind != PendingCopy::Kind::arrival) return true;
  return std::none_of(state.pending.begin(), state.pending.end(), [&](const PendingCopy& other) {
    return other.kind == PendingCopy::Kind::cp_async && other.site.warp == copy.site.warp &&
           (other.lanes & copy.lanes) && other.sequence < copy.sequence;
  });
}

void fill(u8* to, u32 bytes, u32 pattern) {
  for (u32 i = 0; i < bytes; ++i) to[i] = static_cast<u8>(pattern >> (i % 4 * 8));
}

void write_segments(Cluster& cluster, const PendingCopy& copy, u64 base) {
  for (const Segment& segment : *copy.segments) {
    u8* to = reinterpret_cast<u8*>(base + segment.to + copy.to_offset);
    if (segment.from) {
      std::memcpy(to, reinterpret_cast<const u8*>(segment.from), segment.bytes);
    } else {
      fill(to, segment.bytes, copy.fill);
    }
  }
  wake(cluster);
}

void require_live_destination(Cluster& cluster, const PendingCopy& copy) {
  for (const auto& warp : cluster.ctas[copy.block]->warps) {
    if (!warp->done()) return;
  }
  fault_at(copy.site, "cluster",
           "a copy into the shared memory of block " + std::to_string(copy.block) +
               " is under way although that block has exited");
}

// True once nothing is left to do.
bool advance_store(Cluster& cluster, PendingCopy& copy) {
  wake(cluster);
  u64 at = 0;
  if (!copy.has_read) {
    copy.has_read = true;
    copy.data.resize(copy.bytes);
    for (const Segment& segment : *copy.segments) {
      std::memcpy(copy.data.data() + at, cluster.shared + segment.to, segment.bytes);
      at += segment.bytes;
    }
    return false;
  }
  for (const Segment& segment : *copy.segments) {
    u8* to = reinterpret_cast<u8*>(segment.from);
    const u8* from = copy.data.data() + at;
    if (to != nullptr && copy.reduce != nullptr) {
      copy.reduce(to, from, segment.bytes);
    } else if (to != nullptr) {
      std::memcpy(to, from, segment.bytes);
    }
    at += segment.bytes;
  }
  return true;
}

// Takes the copy at the index one step on.
void advance(Cluster& cluster, size_t index) {
  AsyncClusterState& state = async_of(cluster);
  if (state.pending[index].kind == PendingCopy::Kind::store) {
    if (advance_store(cluster, state.pending[index]))
      state.pending.erase(state.pending.begin() + static_cast<long>(index));
    return;
  }
  const PendingCopy copy = std::move(state.pending[index]);
  state.pending.erase(state.pending.begin() + static_cast<long>(index));
  switch (copy.kind) {
    case PendingCopy::Kind::load:
      require_live_destination(cluster, copy);
      write_segments(cluster, copy, u64(cluster.shared));
      complete_bytes(cluster, copy.site, copy.barrier[0], copy.bytes, copy.view);
      break;
    case PendingCopy::Kind::cp_async:
      write_segments(cluster, copy, u64(cluster.shared));
      break;
    case PendingCopy::Kind::arrival:
      for (u32 rest = copy.lanes; rest; rest &= rest - 1) {
        const int lane = first_lane(rest);
        arrive_late(cluster, {copy.site.warp, copy.site.pc, lane}, copy.barrier[lane], copy.view);
      }
      break;
    case PendingCopy::Kind::store:
      break;
  }
}

}  // namespace

// Copies have no order among themselves. fair takes the oldest at once; random any, at any time; late and highest the
// newest, lowest the oldest, and these three only when nothing else can run.
bool complete_one_copy(Cluster& cluster, bool urgent) {
  AsyncClusterState& state = async_of(cluster);
  if (state.pending.empty()) return false;
  const Schedule schedule = cluster.grid->schedule;
  auto& random = cluster.random;
  if (!urgent && schedule != Schedule::fair && (schedule != Schedule::random || random() % 2)) return false;
  const size_t count = state.pending.size();
  size_t index = 0;
  if (schedule == Schedule::random) index = random() % count;
  if (schedule == Schedule::late || schedule == Schedule::highest) index = count - 1;
  for (size_t tries = 0; tries < count; ++tries, index = index + 1 == count ? 0 : index + 1) {
    if (!may_complete(state, state.pending[index])) continue;
    advance(cluster, index);
    return true;
  }
  return false;
}

// All blocks of the cluster have exited. Stores may still be on their way; nothing may still come in.
void finish_copies(Cluster& cluster) {
  AsyncClusterState& state = async_of(cluster);
  for (const PendingCopy& copy : state.pending) {
    if (copy.kind == PendingCopy::Kind::load) require_live_destination(cluster, copy);
    if (copy.kind == PendingCopy::Kind::store && !copy.has_read) {
      fault_at(copy.site, "copy",
               "the block exits while a bulk store still reads its shared memory: nothing waited for it");
    }
  }
  while (!state.pending.empty()) {
    size_t index = 0;
    while (!may_complete(state, state.pending[index])) ++index;
    if (state.pending[index].kind == PendingCopy::Kind::store) {
      advance(cluster, index);
    } else {
      state.pending.erase(state.pending.begin() + static_cast<long>(index));
    }
  }
}

}  // namespace glm5::emulator
