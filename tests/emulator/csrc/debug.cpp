#include "debug.h"

#include <algorithm>
#include <utility>

#include "decoder.h"
#include "memory.h"
#include "report.h"

namespace glm5::emulator {
namespace {

constexpr int kElsewhere = -1;

// Which of the watched lines an instruction belongs to, itself or by a call that was inlined. 0 where all are watched.
int line_of(const Watch& watch, const Program& program, u32 pc) {
  if (watch.lines.empty()) return 0;
  for (const SourceLine* at = &program.places[pc].source;; at = &program.callers[at->caller]) {
    for (size_t i = 0; i < watch.lines.size(); ++i)
      if (at->line == watch.lines[i].second && program.file_of(*at).ends_with(watch.lines[i].first))
        return static_cast<int>(i);
    if (at->caller == 0) return kElsewhere;
  }
}

std::vector<StopRegister> registers_of(Warp& warp, u32 pc) {
  const Program& program = *warp.program;
  const auto& names = program.names;
  const size_t end = pc + 1 < program.places.size() ? program.places[pc + 1].first_name : names.size();
  std::vector<StopRegister> found;
  for (size_t i = program.places[pc].first_name; i < end; ++i)
    found.push_back({names[i].name.data(), names[i].name.size(), Decoder::name_of(names[i].type).data(),
                     row<u8>(warp, names[i].row), names[i].bytes, names[i].is_written});
  return found;
}

void tell(Warp& warp, u32 pc, u32 mask, StopKind kind, bool arrives) {
  const Program& program = *warp.program;
  const Place& place = program.places[pc];
  const std::string kernel = demangled(program.kernel), callers = callers_of(program, place.source, "\n");
  const std::vector<StopRegister> registers = registers_of(warp, pc);
  const Cta& cta = *warp.cta;
  Stop stop;
  stop.kernel = kernel.c_str();
  stop.file = program.file_of(place.source).c_str();
  stop.callers = callers.c_str();
  stop.text = place.text.data();
  stop.text_bytes = place.text.size();
  stop.registers = registers.data();
  stop.register_count = static_cast<u32>(registers.size());
  stop.shared = cta.cluster->shared;
  stop.shadow = Memory::shadow(u64(cta.cluster->shared));
  stop.shared_begin = cta.shared_address + kFirstShared;
  stop.shared_end = cta.shared_address + cta.shared_end;
  stop.mask = mask;
  stop.line = place.source.line;
  stop.ptx_line = place.ptx_line;
  std::copy_n(cta.id, 3, stop.block);
  stop.warp = static_cast<u32>(warp.index);
  stop.kind = kind;
  stop.arrives = arrives;
  warp.watched->watch->listener(&stop);
}

}  // namespace

void watch_if_wanted(Warp& warp, const Watch* watch) {
  if (watch == nullptr || warp.index != watch->warp) return;
  if (!std::equal(watch->block, watch->block + 3, warp.cta->id)) return;
  if (demangled(warp.program->kernel).find(watch->kernel) == std::string::npos) return;
  warp.watched = std::make_shared<WatchedWarp>(WatchedWarp{watch});
}

Step execute_watched(Warp& warp, const Instruction& in, u32 mask) {
  WatchedWarp& watched = *warp.watched;
  const u32 pc = warp.group->pc, previous = std::exchange(watched.previous_pc, pc);
  const int line = line_of(*watched.watch, *warp.program, pc);
  if (line == kElsewhere) return in.execute(warp, in, mask);
  // An instruction that blocked is executed again until it does not.
  const bool is_again = std::exchange(watched.waits_at, kNowhere) == pc;
  // Going back within a line is a new round of a loop.
  const bool stays = pc > previous && line_of(*watched.watch, *warp.program, previous) == line;
  if (!is_again) tell(warp, pc, mask, StopKind::before, !stays);
  Step step;
  try {
    step = in.execute(warp, in, mask);
  } catch (...) {
    tell(warp, pc, mask, StopKind::failed, false);
    throw;
  }
  if (step == Step::blocked) watched.waits_at = pc;
  if (step != Step::blocked || !is_again)
    tell(warp, pc, mask, step == Step::blocked ? StopKind::blocked : StopKind::after, false);
  return step;
}

}  // namespace glm5::emulator
