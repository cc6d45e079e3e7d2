#include "touched.h"

#include <algorithm>

namespace glm5::emulator {
namespace {

void set_bits(u64* words, u64 at, u64 count) {
  while (count > 0) {
    const u64 shift = at % 64, taken = std::min(count, 64 - shift);
    const u64 bits = taken == 64 ? ~u64{0} : (u64{1} << taken) - 1;
    words[at / 64] |= bits << shift;
    at += taken;
    count -= taken;
  }
}

}  // namespace

TouchedBytes::Page& TouchedBytes::page(u64 number) {
  if (recent_ == nullptr || recent_number_ != number) {
    auto& found = pages_[number];
    if (!found) found = std::make_unique<Page>();
    recent_ = found.get();
    recent_number_ = number;
  }
  return *recent_;
}

void TouchedBytes::note(Access access, u64 address, u64 bytes) {
  while (bytes > 0) {
    const u64 at = address % kPage, count = std::min(bytes, kPage - at);
    Page& where = page(address / kPage);
    set_bits(access == Access::read ? where.read : where.written, at, count);
    address += count;
    bytes -= count;
  }
}

u64 TouchedBytes::add(const TouchedBytes& other) {
  u64 lowest = 0;
  for (const auto& [number, theirs] : other.pages_) {
    Page& ours = page(number);
    for (u64 i = 0; i < kPage / 64; ++i) {
      const u64 conflict =
          (ours.written[i] & (theirs->read[i] | theirs->written[i])) | (ours.read[i] & theirs->written[i]);
      ours.read[i] |= theirs->read[i];
      ours.written[i] |= theirs->written[i];
      if (conflict == 0) continue;
      const u64 address = number * kPage + i * 64 + static_cast<u64>(__builtin_ctzll(conflict));
      lowest = lowest == 0 ? address : std::min(lowest, address);
    }
  }
  return lowest;
}

}  // namespace glm5::emulator
