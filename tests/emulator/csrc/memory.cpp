#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "report.h"

namespace glm5::emulator {
namespace {

constexpr u64 kPage = 4096, kGap = 512, kAlignment = 256;
constexpr u64 kShadowDistance = u64{4} << 40;

u64 page_down(u64 address) { return address / kPage * kPage; }
u64 page_up(u64 address) { return (address + kPage - 1) / kPage * kPage; }

void open_pages(u64 begin, u64 end) {
  if (mprotect(reinterpret_cast<void*>(page_down(begin)), page_up(end) - page_down(begin), PROT_READ | PROT_WRITE) != 0)
    refuse("the emulated device is out of memory: the host refused ", end - begin, " bytes");
}

}  // namespace

Memory& Memory::instance() {
  static Memory* memory = new Memory;  // never destroyed: kernels' static objects may outlive any order
  return *memory;
}

Memory::Memory() {
  void* base = mmap(nullptr, kBytes + kShadowDistance, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED)
    refuse("the emulator needs 8 TiB of address space (not memory), and the host refused it; is `ulimit -v` set?");
  base_ = static_cast<u8*>(base);
}

u8* Memory::shadow(u64 address) { return reinterpret_cast<u8*>(address + kShadowDistance); }

Extent& Memory::allocate(u64 bytes, std::string name, u64 address_modulo) {
  const u64 begin =
      (u64(base_) + next_ + kGap + kAlignment - 1) / kAlignment * kAlignment + address_modulo % kAlignment;
  if (begin + bytes + kGap - u64(base_) > kBytes) refuse("the emulated device's address space of 4 TiB is used up");
  next_ = begin + bytes - u64(base_);
  open_pages(begin, begin + bytes + 1);
  open_pages(u64(shadow(begin)), u64(shadow(begin + bytes + 1)));
  return extents_.emplace_back(Extent{.begin = begin, .end = begin + bytes, .name = std::move(name)});
}

Extent* Memory::find(u64 address) {
  auto it = std::upper_bound(extents_.begin(), extents_.end(), address,
                             [](u64 value, const Extent& extent) { return value < extent.begin; });
  return it == extents_.begin() ? nullptr : &*std::prev(it);
}

void Memory::release(u64 address) {
  Extent* extent = find(address);
  if (extent == nullptr || extent->begin != address) refuse("free of ", Hex{address}, ", which was never allocated");
  if (!extent->is_live) refuse("free of ", extent->name, ", which was freed before");
  extent->is_live = false;
  // Only whole pages of its own go back; the others may hold a neighbour.
  const u64 begin = page_up(extent->begin), end = page_down(extent->end);
  if (begin >= end) return;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  madvise(shadow(begin), end - begin, MADV_DONTNEED);
}

void Memory::mark(u64 address, u64 bytes, Shadow value) {
  Extent* extent = find(address);
  if (extent == nullptr || address + bytes > extent->end) refuse("mark outside an allocation");
  if (value != kInitialised) extent->is_watched = true;
  std::memset(shadow(address), value, bytes);
}

u64 Memory::live_allocations() const {
  return static_cast<u64>(std::count_if(extents_.begin(), extents_.end(), [](const Extent& e) { return e.is_live; }));
}

int Memory::take_window() {
  const std::lock_guard lock(mutex_);
  auto free = std::find(windows_.begin(), windows_.end(), false);
  if (free == windows_.end()) {
    if ((windows_.size() + 1) * kSharedWindowBytes > kSharedBytes) refuse("too many clusters are resident");
    const u64 begin = u64(window(static_cast<int>(windows_.size())));
    open_pages(begin, begin + kSharedWindowBytes);
    open_pages(u64(shadow(begin)), u64(shadow(begin)) + kSharedWindowBytes);
    windows_.push_back(true);
    return static_cast<int>(windows_.size()) - 1;
  }
  *free = true;
  return static_cast<int>(free - windows_.begin());
}

void Memory::return_window(int window) {
  const std::lock_guard lock(mutex_);
  windows_[window] = false;
}

u8* Memory::open_local(int window, u64 offset, u64 bytes) {
  constexpr u64 kOfWindow = kLocalBytes / (kSharedBytes / kSharedWindowBytes);
  if (offset + bytes >= kOfWindow) refuse("local memory is used up: a cluster asks for more than ", kOfWindow, " bytes");
  const u64 begin = u64(base_) + kSharedBytes + u64(window) * kOfWindow + offset;
  open_pages(begin, begin + bytes + 1);
  return reinterpret_cast<u8*>(begin);
}

}  // namespace glm5::emulator
