// The memory of the emulated device: one reservation of address space, so that every device address is a host address.
//
// The reservation holds, in this order, the windows of shared memory, local memory, and device allocations, which are
// never reused: an access beyond an allocation, or to a freed one, is found exactly. A second reservation of the same
// size, at a fixed distance, holds a shadow byte for every byte of the first.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

#include "state.h"

namespace glm5::emulator {

// shared::cluster address = rank << 24 | offset; host address = cluster.shared + address. The first 1 KiB belongs to
// the system.
constexpr u32 kRankShift = 24, kFirstShared = 1024;
constexpr u64 kSharedWindowBytes = u64{16} << kRankShift;
constexpr u32 kSharedPerBlock = 227 * 1024;  // what a block may use on sm_90

enum class Access : unsigned char { read, write, atomic };

// A shadow byte. Untouched shadow is 0, so that memory that nobody watches counts as initialised.
enum Shadow : u8 { kInitialised = 0, kUninitialised = 1, kOutside = 2 };  // kOutside: the gaps of a strided tensor

struct Extent {
  u64 begin = 0, end = 0;
  bool is_live = true;
  bool is_watched = false;  // has shadow bytes other than 0
  bool is_constant = false;
  std::string name;
};

class Memory {
 public:
  static Memory& instance();

  // Exact extent; `address_modulo` places it: begin % 256 == address_modulo. Contents are zero.
  Extent& allocate(u64 bytes, std::string name, u64 address_modulo = 0);
  void release(u64 address);  // throws Refusal for what was not allocated
  Extent* find(u64 address);  // the allocation, live or freed, that begins at or before the address; or null

  int take_window();  // a shared window that nobody holds
  void return_window(int window);
  u8* window(int index) const { return base_ + u64(index) * kSharedWindowBytes; }

  // Local memory of what runs in a window, from byte `offset` on.
  u8* open_local(int window, u64 offset, u64 bytes);

  bool holds(u64 address) const { return address - u64(base_) < kBytes; }
  bool is_shared(u64 address) const { return address - u64(base_) < kSharedBytes; }
  bool is_local(u64 address) const { return address - u64(base_) - kSharedBytes < kLocalBytes; }
  static u8* shadow(u64 address);  // of an address in the reservation
  void mark(u64 address, u64 bytes, Shadow value);
  bool allows_host_pointers = false;  // accesses outside the reservation are then unchecked, else a fault
  u64 live_allocations() const;

 private:
  Memory();
  static constexpr u64 kBytes = u64{4} << 40, kSharedBytes = u64{64} << 30, kLocalBytes = u64{1} << 40;
  u8* base_ = nullptr;
  u64 next_ = kSharedBytes + kLocalBytes;  // bump
  std::deque<Extent> extents_;  // ascending
  std::mutex mutex_;  // of windows_
  std::vector<bool> windows_;
};

// Generic or space-specific address -> host address. Shared addresses are window addresses; all others are host
// addresses.
inline u64 host_address(Warp& warp, Space space, u64 address) {
  return space == Space::shared ? u64(cluster_of(warp).shared) + (address & 0xffffffff) : address;
}
inline bool is_shared_host(Warp& warp, u64 host) { return host - u64(cluster_of(warp).shared) < kSharedWindowBytes; }
inline u32 shared_address(Warp& warp, u64 host) { return static_cast<u32>(host - u64(cluster_of(warp).shared)); }

// Bounds, liveness and initialisation of `bytes` at a host address, on behalf of one lane. Marks what is written. For
// the asynchronous agents, and the slow path of everything else. Alignment is the caller's matter.
void check_bytes(Warp& warp, int lane, Access access, u64 host, u64 bytes);

// As check_bytes for the lanes of the mask, plus natural alignment to `alignment`. Addresses are host addresses.
void check_lanes(Warp& warp, Access access, const u64* hosts, u32 mask, u32 bytes, u32 alignment);

// Called after the checks, where somebody listens (the race and proxy checks).
struct AccessEvent {
  Access access;
  bool is_synchronising;  // volatile, atomic, acquire, release
  bool is_shared;
  const u64* hosts;
  u32 mask, bytes;
  const u32* sets = nullptr;  // by lane: which lanes take part in the access at its address; null: each for itself
};

}  // namespace glm5::emulator
