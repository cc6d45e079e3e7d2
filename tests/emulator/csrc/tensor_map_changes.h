// Tensor maps in global memory that the running kernel has changed.
//
// The copy engine reads maps through a proxy of its own: a change is there for it once whoever made it has released it
// (tensormap.cp_fenceproxy, fence.proxy.tensormap::generic.release) and whoever uses it has acquired it
// (fence.proxy.tensormap::generic.acquire) since. Maps that come with a launch need neither.
#pragma once

#include <mutex>
#include <unordered_map>

#include "core/types.h"

namespace glm5::emulator {

class TensorMapChanges {
 public:
  struct Version {
    u32 number = 0;  // 0: as it came with the launch
    bool is_released = true;
  };
  // by: whose release counts.
  void change(u64 address, u64 by, bool is_released) {
    const std::lock_guard lock(mutex_);
    Entry& entry = entries_[address];
    entry = {{entry.version.number + 1, is_released}, by};
  }
  void release(u64 by) {
    const std::lock_guard lock(mutex_);
    for (auto& [address, entry] : entries_) entry.version.is_released |= entry.by == by;
  }
  Version version(u64 address) const {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(address);
    return found == entries_.end() ? Version{} : found->second.version;
  }

 private:
  struct Entry {
    Version version;
    u64 by = 0;
  };
  mutable std::mutex mutex_;
  std::unordered_map<u64, Entry> entries_;
};

}  // namespace glm5::emulator
