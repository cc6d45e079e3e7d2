#include "cpu/isa.h"

#include <atomic>
#include <cstring>

#include "core/error.h"
#include "cpu/parallel.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace glm5::cpu {
namespace {

#if defined(__x86_64__)

struct Leaf {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(unsigned leaf, unsigned subleaf) {
  Leaf r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

bool has(unsigned word, int bit) { return (word >> bit) & 1; }

// Register state that the operating system saves (XCR0); an instruction set without it traps.
u64 enabled_state() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (u64{high} << 32) | low;
}

// Linux keeps the 8 KiB of tile registers from a process until it asks. Refused (old kernel, container policy): no AMX.
bool tiles_granted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

Isa detect() {
  const Leaf basic = cpuid(1, 0), extended = cpuid(7, 0);
  const bool os_saves_state = has(basic.ecx, 27);
  const u64 state = os_saves_state ? enabled_state() : 0;
  constexpr u64 kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;
  const bool fma = has(basic.ecx, 12), f16c = has(basic.ecx, 29);
  if (!fma || !f16c || !has(extended.ebx, 5) || (state & kAvxState) != kAvxState) return Isa::generic;
  // F, DQ, BW, VL and VBMI: Ice Lake and later, Zen 4 and later. Skylake-X lacks VBMI and takes the AVX2 kernels.
  const bool avx512 = has(extended.ebx, 16) && has(extended.ebx, 17) && has(extended.ebx, 30) &&
                      has(extended.ebx, 31) && has(extended.ecx, 1);
  if (!avx512 || (state & kAvx512State) != kAvx512State) return Isa::avx2;
  const bool amx = has(extended.edx, 24) && has(extended.edx, 22);  // AMX-TILE, AMX-BF16
  if (!amx || (state & kTileState) != kTileState || !tiles_granted()) return Isa::avx512;
  return Isa::amx;
}

#else

Isa detect() { return Isa::generic; }

#endif

std::atomic<Isa> allowed{Isa::amx};
std::atomic<Interpreter> door{nullptr};
std::atomic<Isa> interpreted{Isa::generic};

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
    case Isa::amx: return "amx";
  }
  return "unknown";
}

Isa detected_isa() {
  static const Isa detected = detect();
  return detected;
}

void limit_isa(Isa isa) { allowed = isa; }

Isa current_isa() {
  if (door.load() != nullptr) return interpreted.load();
  const Isa best = detected_isa(), limit = allowed.load();
  return limit < best ? limit : best;
}

void interpret_isa(Isa isa, Interpreter interpreter) {
  interpreted = isa;
  door = interpreter;
}

Interpreter current_interpreter() { return door.load(); }

void run_table(const Implementation<void>* table, int entries, const void* args, i64 items, i64 grain) {
  if (items <= 0) return;
  const Isa isa = current_isa();
  for (int i = 0; i < entries; ++i) {
    if (table[i].isa > isa) continue;
    if (const Interpreter interpreter = current_interpreter()) {
      // Two pieces, so that the seam between threads' shares is exercised too.
      const i64 half = items / 2;
      if (half > 0) interpreter(table[i].run, args, 0, half, 0);
      interpreter(table[i].run, args, half, items, 0);
      return;
    }
    using Run = void (*)(const void*, i64, i64, i64);
    Run run;
    static_assert(sizeof(run) == sizeof(table[i].run));
    std::memcpy(&run, &table[i].run, sizeof(run));
    parallel_for(items, grain, [run, args](i64 begin, i64 end, i64 thread) { run(args, begin, end, thread); });
    return;
  }
  require(false, "no implementation for ", name(isa), ": the table must end with generic");
}

}  // namespace glm5::cpu
