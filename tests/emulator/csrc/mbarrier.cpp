#include "mbarrier.h"

namespace glm5::emulator {
namespace {

constexpr int kExpectedAt = 20, kBytesAt = 40, kValidAt = 62, kPhaseAt = 63;
constexpr u64 kCountMask = (1 << 20) - 1, kBytesMask = (1 << 21) - 1;

}  // namespace

BarrierWord BarrierWord::from(u64 bits) {
  BarrierWord word;
  word.pending = static_cast<u32>(bits & kCountMask);
  word.expected = static_cast<u32>(bits >> kExpectedAt & kCountMask);
  word.bytes = static_cast<i32>(static_cast<u32>(bits >> kBytesAt & kBytesMask) << 11) >> 11;
  word.is_valid = bits >> kValidAt & 1;
  word.phase = static_cast<u32>(bits >> kPhaseAt);
  return word;
}

u64 BarrierWord::bits() const {
  return u64{pending} | u64{expected} << kExpectedAt | (static_cast<u64>(bytes) & kBytesMask) << kBytesAt |
         u64{is_valid} << kValidAt | u64{phase} << kPhaseAt;
}

bool BarrierWord::settle() {
  if (pending != 0 || bytes != 0) return false;
  phase ^= 1;
  pending = expected;
  return true;
}

const char* BarrierWord::expect(i64 more_bytes, bool& completes) {
  const i64 sum = bytes + more_bytes;
  if (sum > kMostBytes || sum < -kMostBytes) return "the transaction count leaves its range";
  bytes = static_cast<i32>(sum);
  if (pending == 0 && bytes < 0) return "more bytes have come than the phase expects";
  completes = settle();
  return nullptr;
}

const char* BarrierWord::arrive(u32 count, bool& completes) { return arrive_expecting(count, 0, false, completes); }

const char* BarrierWord::drop(u32 count, bool& completes) { return arrive_expecting(count, 0, true, completes); }

const char* BarrierWord::arrive_expecting(u32 count, i64 more_bytes, bool drops, bool& completes) {
  const i64 sum = bytes + more_bytes;
  if (sum > kMostBytes || sum < -kMostBytes) return "the transaction count leaves its range";
  if (count > pending) return "more arrivals than the phase expects";
  if (drops && count > expected) return "more dropped arrivals than the barrier expects";
  bytes = static_cast<i32>(sum);
  pending -= count;
  if (drops) expected -= count;
  if (pending == 0 && bytes < 0) return "more bytes have come than the phase expects";
  completes = settle();
  return nullptr;
}

}  // namespace glm5::emulator
