// Which bytes of device memory a cluster reads and writes: to see that clusters which run side by side, and in any
// order, have nothing to do with each other.
#pragma once

#include <memory>
#include <unordered_map>

#include "memory.h"

namespace glm5::emulator {

class TouchedBytes {
 public:
  void note(Access access, u64 address, u64 bytes);
  // Takes in what another cluster has touched. The lowest address that one of the two writes and the other touches; 0
  // where there is none.
  u64 add(const TouchedBytes& other);

 private:
  static constexpr u64 kPage = 4096;
  struct Page {
    u64 read[kPage / 64] = {}, written[kPage / 64] = {};  // a bit per byte
  };
  Page& page(u64 number);
  std::unordered_map<u64, std::unique_ptr<Page>> pages_;
  u64 recent_number_ = 0;
  Page* recent_ = nullptr;
};

// Where the warp's cluster keeps a record: the lanes of the mask access `bytes` each, in device allocations.
inline void note_touched(Warp& warp, Access access, const u64* hosts, u32 mask, u32 bytes) {
  TouchedBytes* touched = cluster_of(warp).touched;
  if (touched == nullptr) return;
  for (u32 rest = mask; rest; rest &= rest - 1) touched->note(access, hosts[first_lane(rest)], bytes);
}

}  // namespace glm5::emulator
