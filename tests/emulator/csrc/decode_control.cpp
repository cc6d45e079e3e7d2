// Branches, calls, exit. PTX ISA 9.7.12 and 9.7.19.
#include <cstring>

#include "agents.h"
#include "control.h"
#include "lanes.h"
#include "report.h"
#include "scheduler.h"

namespace glm5::emulator {
namespace {

// The lanes of `mask` go to `target`; the rest of the group stays behind at its next instruction.
Step jump(Warp& warp, u32 mask, u32 target) {
  Group& group = *warp.group;
  const u32 staying = group.mask & ~mask;
  if (staying == 0) {
    group.pc = target;
    return Step::jumped;
  }
  Group gone;
  gone.mask = mask;
  gone.pc = target;
  gone.stack = group.stack;
  group.mask = staying;
  ++group.pc;
  warp.groups.push_back(std::move(gone));
  return Step::jumped;
}

Step run_bra(Warp& warp, const Instruction& in, u32 mask) { return jump(warp, mask, in.target); }

void decode_bra(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"uni"});
  decoder.operands(1, 1);
  in.target = decoder.label(text.operands[0]);
  in.execute = run_bra;
}

Step run_exit(Warp& warp, const Instruction&, u32 mask) {
  end_lanes(warp, mask);
  return Step::jumped;
}

void copy_areas(Warp& warp, const std::vector<AreaCopy>& copies, u32 mask) {
  for (const AreaCopy& copy : copies) {
    const u8* from = warp.registers.data() + copy.from;
    u8* to = warp.registers.data() + copy.to;
    each_lane(mask, [&](int i) {
      std::memcpy(to + static_cast<u32>(i) * copy.to_lane_bytes, from + static_cast<u32>(i) * copy.from_lane_bytes,
                  copy.bytes);
    });
  }
}

Step run_ret(Warp& warp, const Instruction& in, u32 mask) {
  Group& group = *warp.group;
  if (group.stack.empty()) return run_exit(warp, in, mask);
  const CallFrame frame = group.stack.back();
  copy_areas(warp, frame.site->results, mask);
  const Step step = jump(warp, mask, frame.return_pc);
  (group.mask == mask ? group : warp.groups.back()).stack.pop_back();
  return step;
}

Step run_call(Warp& warp, const Instruction& in, u32 mask) {
  const auto* site = static_cast<const CallSite*>(in.extra);
  constexpr size_t kDeepest = 64;
  if (warp.group->stack.size() >= kDeepest) fault(warp, first_lane(mask), "control", "calls are nested too deeply");
  copy_areas(warp, site->arguments, mask);
  const u32 return_pc = warp.group->pc + 1;
  for (const CallFrame& frame : warp.group->stack)
    if (frame.site->callee == site->callee)
      fault(warp, first_lane(mask), "control", "recursive calls are not supported");
  const Step step = jump(warp, mask, site->callee->first);
  (warp.group->mask == mask ? *warp.group : warp.groups.back()).stack.push_back({return_pc, site});
  return step;
}

template <Step (*kExternal)(Warp&, const CallSite&, u32)>
Step run_external(Warp& warp, const Instruction& in, u32 mask) {
  return kExternal(warp, *static_cast<const CallSite*>(in.extra), mask);
}

AreaCopy area_copy(const PlaceOfVariable& from, const PlaceOfVariable& to, u64 bytes) {
  return {from.area, to.area, from.lane_bytes, to.lane_bytes, static_cast<u32>(bytes)};
}

// call (result), name, (arguments); with either list absent.
void decode_call(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"uni"});
  Linker& linker = decoder.linker();
  const TextOperand* name = nullptr;
  std::vector<TextOperand> results, arguments;
  for (const TextOperand& operand : text.operands) {
    if (operand.kind == TextOperand::Kind::list) (name ? arguments : results) = operand.parts;
    else if (name == nullptr) name = &operand;
    else decoder.fail("calls through a pointer are not supported");
  }
  if (name == nullptr || decoder.is_register(*name)) decoder.fail("calls through a pointer are not supported");
  const auto place = [&](const TextOperand& operand) {
    const auto found = linker.variable(decoder.function(), static_cast<int>(text.scope), operand.name);
    if (!found.exists || found.space != Space::param)
      decoder.fail("call operand ", operand.name, " is no .param variable");
    return found;
  };
  CallSite site;
  site.callee = linker.callee(name->name);
  if (site.callee == nullptr) {
    for (const auto& argument : arguments) site.external_arguments.push_back(place(argument));
    for (const auto& result : results) site.external_result = place(result);
    if (name->name == "vprintf") in.execute = run_external<run_vprintf>;
    else if (name->name == "__assertfail") in.execute = run_external<run_assertfail>;
    else decoder.fail("function ", name->name, " is defined nowhere");
  } else {
    const Function& callee = *site.callee->function;
    if (callee.parameters.size() != arguments.size() || callee.results.size() != results.size())
      decoder.fail("the call does not fit the signature of ", name->name);
    for (size_t i = 0; i < arguments.size(); ++i) {
      const Variable& formal = callee.parameters[i];
      site.arguments.push_back(
          area_copy(place(arguments[i]), linker.signature_area(*site.callee, formal), formal.bytes));
    }
    for (size_t i = 0; i < results.size(); ++i) {
      const Variable& formal = callee.results[i];
      site.results.push_back(area_copy(linker.signature_area(*site.callee, formal), place(results[i]), formal.bytes));
    }
    in.execute = run_call;
  }
  in.extra = decoder.keep(std::move(site));
}

Step run_trap(Warp& warp, const Instruction&, u32 mask) {
  fault(warp, first_lane(mask), "trap", "the kernel executed trap");
}

Step run_yield(Warp&, const Instruction&, u32) { return Step::yielded; }
Step run_nothing(Warp&, const Instruction&, u32) { return Step::next; }

template <Executor kExecutor>
void decode_as(Decoder&, const TextInstruction&, Instruction& in) { in.execute = kExecutor; }

constexpr Entry kEntries[] = {
    {"bra", "9.7.12.2", decode_bra, Class::control},
    {"call", "9.7.12.5", decode_call, Class::control},
    {"ret", "9.7.12.6", decode_as<run_ret>, Class::control},
    {"exit", "9.7.12.7", decode_as<run_exit>, Class::control},
    {"brkpt", "9.7.19.1", decode_as<run_nothing>, Class::control},
    {"nanosleep", "9.7.19.2", decode_as<run_yield>, Class::control},
    {"pmevent", "9.7.19.3", decode_as<run_nothing>, Class::control},
    {"trap", "9.7.19.4", decode_as<run_trap>, Class::control},
    {"griddepcontrol", "9.7.13.13", decode_as<run_nothing>, Class::control},
};

}  // namespace

std::span<const Entry> control_entries() { return kEntries; }

}  // namespace glm5::emulator
