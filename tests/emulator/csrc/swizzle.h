// The shared-memory swizzles of the copy engine and of wgmma: an exclusive or on the absolute shared address.
#pragma once

#include "core/types.h"

namespace glm5::emulator {

enum class Swizzle : u8 { none, bytes_32, bytes_64, bytes_128 };

// Bits 4 and up of the address take the exclusive or with bits 7 and up: one, two or three of them. Because the address
// is absolute, a matrix may start anywhere in the pattern.
constexpr u64 swizzled(u64 address, Swizzle mode) {
  constexpr u64 kMask[] = {0, 0x10, 0x30, 0x70};
  return address ^ ((address >> 3) & kMask[static_cast<int>(mode)]);
}

constexpr u32 span_of(Swizzle mode) { return mode == Swizzle::none ? 16 : 16u << static_cast<int>(mode); }

}  // namespace glm5::emulator
