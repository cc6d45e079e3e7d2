// Branches, calls, exit. PTX ISA 9.7.12 and 9.7.19.
#include <algorithm>
#include <cstring>
#include <map>

#include "agents.h"
#include "control.h"
#include "lanes.h"
#include "report.h"
#include "scheduler.h"
#include "specials.h"

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

// A call loses the condition code of extended arithmetic.
void forget_carry(Warp& warp, u32 mask) { set_predicate(warp, special_row(Special::carry_is_set), mask, 0); }

Step run_ret(Warp& warp, const Instruction& in, u32 mask) {
  Group& group = *warp.group;
  if (group.stack.empty()) return run_exit(warp, in, mask);
  const CallFrame frame = group.stack.back();
  copy_areas(warp, frame.site->results, mask);
  forget_carry(warp, mask);
  const Step step = jump(warp, mask, frame.return_pc);
  (group.mask == mask ? group : warp.groups.back()).stack.pop_back();
  return step;
}

// The lanes of `mask` go into the callee; the rest of the group is at `rest_pc` then.
Step enter(Warp& warp, const CallSite& site, u32 mask, u32 rest_pc) {
  Group& group = *warp.group;
  constexpr size_t kDeepest = 64;
  if (group.stack.size() >= kDeepest) fault(warp, first_lane(mask), "control", "calls are nested too deeply");
  for (const CallFrame& frame : group.stack)
    if (frame.site->callee == site.callee)
      fault(warp, first_lane(mask), "control", "recursive calls are not supported");
  copy_areas(warp, site.arguments, mask);
  forget_carry(warp, mask);
  const u32 return_pc = group.pc + 1;
  const Step step = jump(warp, mask, site.callee->first);
  if (group.mask != mask) group.pc = rest_pc;
  (group.mask == mask ? group : warp.groups.back()).stack.push_back({return_pc, &site});
  return step;
}

Step run_call(Warp& warp, const Instruction& in, u32 mask) {
  return enter(warp, *static_cast<const CallSite*>(in.extra), mask, warp.group->pc + 1);
}

// A call through a pointer: a site for each function that it may meet, by the address that mov gives it.
struct PointerSite {
  std::map<u64, CallSite> sites;
};

// The lanes that hold the same pointer as the first go; the others come to the same instruction again.
Step run_pointer_call(Warp& warp, const Instruction& in, u32 mask) {
  const auto& sites = static_cast<const PointerSite*>(in.extra)->sites;
  const u64* pointers = row<u64>(warp, in.a);
  const int first = first_lane(mask);
  const u64 pointer = pointers[first];
  const auto found = sites.find(pointer);
  if (found == sites.end())
    fault(warp, first, "control", "a call through the pointer ", Hex{pointer},
          ", which is no function with the signature of the call that this kernel knows");
  return enter(warp, found->second, where(mask, [&](int i) { return pointers[i] == pointer; }) & mask, warp.group->pc);
}

struct UndefinedCall {
  std::string name;
};

Step run_undefined_call(Warp& warp, const Instruction& in, u32 mask) {
  fault(warp, first_lane(mask), "instruction", "calls ", static_cast<const UndefinedCall*>(in.extra)->name,
        ", which is defined nowhere");
}

template <Step (*kExternal)(Warp&, const CallSite&, u32)>
Step run_external(Warp& warp, const Instruction& in, u32 mask) {
  return kExternal(warp, *static_cast<const CallSite*>(in.extra), mask);
}

AreaCopy area_copy(const PlaceOfVariable& from, const PlaceOfVariable& to, u64 bytes) {
  return {from.area, to.area, from.lane_bytes, to.lane_bytes, static_cast<u32>(bytes)};
}

// The operands of call (result), name, (arguments), prototype; where a list is absent it is empty.
struct CallText {
  const TextOperand *name = nullptr, *prototype = nullptr;
  std::vector<TextOperand> results, arguments;
};

CallText call_text(Decoder& decoder, const TextInstruction& text) {
  CallText call;
  for (const TextOperand& operand : text.operands) {
    if (operand.kind == TextOperand::Kind::list) {
      (call.name ? call.arguments : call.results) = operand.parts;
    } else if (call.prototype == nullptr) {
      (call.name ? call.prototype : call.name) = &operand;
    } else {
      decoder.fail("too many operands");
    }
  }
  if (call.name == nullptr) decoder.fail("the function is missing");
  return call;
}

PlaceOfVariable place_of(Decoder& decoder, const TextInstruction& text, const TextOperand& operand) {
  const auto found = decoder.linker().variable(decoder.function(), static_cast<int>(text.scope), operand.name);
  if (!found.exists || found.space != Space::param)
    decoder.fail("call operand ", operand.name, " is no .param variable");
  return found;
}

bool same_sizes(const std::vector<Variable>& a, const std::vector<Variable>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Variable& x, const Variable& y) { return x.bytes == y.bytes; });
}

CallSite site_to(Decoder& decoder, const TextInstruction& text, const CallText& call, FunctionImage& callee) {
  Linker& linker = decoder.linker();
  CallSite site;
  site.callee = &callee;
  const auto &results = callee.function->results, &parameters = callee.function->parameters;
  if (parameters.size() != call.arguments.size() || results.size() != call.results.size())
    decoder.fail("the call does not fit the signature of ", callee.function->name);
  for (size_t i = 0; i < parameters.size(); ++i)
    site.arguments.push_back(area_copy(place_of(decoder, text, call.arguments[i]),
                                       linker.signature_area(callee, parameters[i]), parameters[i].bytes));
  for (size_t i = 0; i < results.size(); ++i)
    site.results.push_back(area_copy(linker.signature_area(callee, results[i]),
                                     place_of(decoder, text, call.results[i]), results[i].bytes));
  return site;
}

void decode_pointer_call(Decoder& decoder, const TextInstruction& text, const CallText& call, Instruction& in) {
  const Prototype* prototype = call.prototype ? decoder.prototype(*call.prototype) : nullptr;
  if (prototype == nullptr) decoder.fail("a call through a pointer needs a .callprototype");
  PointerSite pointers;
  for (FunctionImage& image : decoder.linker().images()) {
    const Function& function = *image.function;
    const bool fits = same_sizes(function.parameters, prototype->parameters) &&
                      same_sizes(function.results, prototype->results);
    if (!function.is_entry && fits) pointers.sites[u64(&function)] = site_to(decoder, text, call, image);
  }
  in.a = decoder.read(*call.name, Type::u64);
  in.extra = decoder.keep(std::move(pointers));
  in.execute = run_pointer_call;
}

void decode_call(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"uni"});
  const CallText call = call_text(decoder, text);
  if (decoder.is_register(*call.name)) return decode_pointer_call(decoder, text, call, in);
  if (FunctionImage* callee = decoder.linker().callee(call.name->name)) {
    in.extra = decoder.keep(site_to(decoder, text, call, *callee));
    in.execute = run_call;
    return;
  }
  CallSite site;
  for (const auto& argument : call.arguments) site.external_arguments.push_back(place_of(decoder, text, argument));
  for (const auto& result : call.results) site.external_result = place_of(decoder, text, result);
  in.extra = decoder.keep(std::move(site));
  const std::string name(call.name->name);
  if (name == "vprintf") {
    in.execute = run_external<run_vprintf>;
  } else if (name == "__assertfail") {
    in.execute = run_external<run_assertfail>;
  } else {  // an error once it is reached: a class's unused destructor calls free
    in.extra = decoder.keep(UndefinedCall{name});
    in.execute = run_undefined_call;
  }
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
