// The mbarrier: a 64-bit word in shared memory. Bits 0-19 pending arrivals, 20-39 arrivals that a phase expects, 40-60
// the transaction count (signed), 62 set while the word is a barrier, 63 the phase bit.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier
#pragma once

#include "core/types.h"

namespace glm5::emulator {

constexpr u32 kMostArrivals = (1u << 20) - 1;
constexpr i64 kMostBytes = (1 << 20) - 1;

struct BarrierWord {
  bool is_valid = false;
  u32 phase = 0, pending = 0, expected = 0;
  i32 bytes = 0;  // announced and not yet come

  static BarrierWord from(u64 bits);
  u64 bits() const;
  // True once the phase of this parity has completed: the phase before the first counts as one of parity 1.
  bool has_passed(u32 parity) const { return phase != (parity & 1); }

  // Each returns what is wrong, or null. `completes` says that the phase has ended.
  const char* arrive(u32 count, bool& completes);
  const char* drop(u32 count, bool& completes);
  const char* expect(i64 more_bytes, bool& completes);
  const char* arrive_expecting(u32 count, i64 more_bytes, bool drops, bool& completes);

 private:
  bool settle();
};

}  // namespace glm5::emulator
