#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "decoder.h"
#include "memory.h"
#include "report.h"
#include "specials.h"
#include "wgmma_registers.h"

namespace glm5::emulator {
namespace {

u64 round_up_to(u64 value, u64 alignment) { return (value + alignment - 1) / alignment * alignment; }

const Variable* find_in_scopes(const Function& function, int scope, std::string_view name, int& found) {
  for (; scope >= 0; scope = function.scopes[scope].parent) {
    const auto& variables = function.scopes[scope].variables;
    found = scope;
    if (const auto it = variables.find(name); it != variables.end()) return &it->second;
  }
  return nullptr;
}

bool has_any(const TextInstruction& text, std::initializer_list<std::string_view> words) {
  return std::any_of(words.begin(), words.end(), [&](std::string_view word) {
    return std::find(text.words.begin(), text.words.end(), word) != text.words.end();
  });
}

// May the instruction tell another cluster something while it runs, or depend on what one tells? In doubt, yes.
bool may_talk(const TextInstruction& text) {
  const auto word = text.words[0];
  if (word == "tensormap" || word == "multimem") return true;
  if (word == "fence" || word == "membar") return has_any(text, {"gpu", "gl", "sys"});
  if (word == "call")  // of printf: the order of what is printed
    return std::any_of(text.operands.begin(), text.operands.end(), [](const auto& o) { return o.name == "vprintf"; });
  if (word == "cp") return has_any(text, {"reduce"}) && has_any(text, {"global"});
  const bool is_shared = std::any_of(text.words.begin(), text.words.end(),
                                     [](std::string_view each) { return each.starts_with("shared"); });
  if (is_shared || word == "mbarrier" || word == "barrier" || word == "griddepcontrol") return false;
  return word == "atom" || word == "red" ||
         has_any(text, {"volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio"});
}

Step fall_off_the_end(Warp& warp, const Instruction&, u32 mask) {
  fault(warp, first_lane(mask), "control", "the function ends without ret");
}

}  // namespace

u64 global_address(Module& module, const Variable& variable) {
  if (const auto it = module.addresses.find(variable.name); it != module.addresses.end()) return it->second;
  if (variable.is_extern) refuse("variable ", variable.name, " is declared extern and defined nowhere");
  Extent& extent = Memory::instance().allocate(variable.bytes, "variable " + demangled(std::string(variable.name)));
  extent.is_constant = variable.space == Space::constant;
  module.addresses[variable.name] = extent.begin;
  auto* bytes = reinterpret_cast<u8*>(extent.begin);
  std::copy(variable.initial.begin(), variable.initial.end(), bytes);
  for (const auto& address : variable.addresses) {
    u64 value;
    if (const auto it = module.variables.find(address.name); it != module.variables.end()) {
      value = global_address(module, it->second) + static_cast<u64>(address.offset);
    } else if (const auto function = module.functions.find(address.name); function != module.functions.end()) {
      value = u64(&function->second);
    } else {
      refuse("the address of ", address.name, " in an initialiser is not supported");
    }
    std::memcpy(bytes + address.at, &value, sizeof value);
  }
  return extent.begin;
}

u32 Linker::allocate_registers(u32 bytes) {
  const u32 offset = static_cast<u32>(round_up_to(program_.register_bytes, bytes < 32 ? 4 : 32));
  program_.register_bytes = offset + bytes;
  return offset;
}

Operand Linker::constant(u64 bits, int bytes) {
  if (bytes > 0 && bytes < 8) bits &= (u64{1} << (8 * bytes)) - 1;
  auto [it, is_new] = constants_.try_emplace({bits, bytes}, 0);
  if (is_new) {
    auto& rows = program_.constants;
    it->second = static_cast<u32>(round_up_to(rows.size(), 32));
    rows.resize(it->second + (bytes ? static_cast<u32>(bytes) * kLanes : 4));
    u8* row = rows.data() + it->second;
    if (bytes == 0) {
      std::memset(row, bits ? 0xff : 0, 4);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) std::memcpy(row + lane * bytes, &bits, std::min(bytes, 8));
    }
  }
  Operand operand;
  operand.offset = it->second & 0x3fffffff;
  operand.region = static_cast<u32>(Region::constants);
  return operand;
}

PlaceOfVariable Linker::area(FunctionImage& image, int scope, const Variable& variable) {
  PlaceOfVariable place{.exists = true, .space = Space::param};
  place.lane_bytes = static_cast<u32>(round_up_to(std::max<u64>(variable.bytes, 1), 16));
  auto [it, is_new] = image.areas.try_emplace({scope, variable.name}, 0);
  if (is_new) it->second = allocate_registers(place.lane_bytes * kLanes);
  place.area = it->second;
  return place;
}

PlaceOfVariable Linker::signature_area(FunctionImage& image, const Variable& variable) {
  return area(image, -1, variable);
}

PlaceOfVariable Linker::variable(const Function& function, int scope, std::string_view name) {
  int found = 0;
  if (const Variable* variable = find_in_scopes(function, scope, name, found)) {
    if (variable->space == Space::param) return area(image(), found, *variable);
    if (variable->space == Space::local) {
      auto [it, is_new] = offsets_.try_emplace(variable, 0);
      if (is_new) {
        it->second = static_cast<u32>(round_up_to(program_.local_bytes, std::max<u32>(variable->alignment, 16)));
        program_.local_bytes = static_cast<u32>(round_up_to(it->second + variable->bytes, 16));
      }
      return {.exists = true, .space = Space::local, .offset = it->second};
    }
    return {.exists = true, .space = Space::shared, .offset = offsets_.at(variable)};
  }
  if (function.is_entry) {
    for (const Parameter& parameter : program_.parameters)
      if (parameter.name == name)
        return {.exists = true, .space = Space::param, .offset = parameter.offset, .is_kernel_parameter = true};
  }
  for (const auto* list : {&function.parameters, &function.results})
    for (const Variable& variable : *list)
      if (variable.name == name) return area(image(), -1, variable);
  const auto it = module_.variables.find(name);
  if (it == module_.variables.end()) {
    const auto called = module_.functions.find(name);
    if (called == module_.functions.end()) return {};
    return {.exists = true, .space = Space::generic, .offset = u64(&called->second)};
  }
  const Variable& variable = it->second;
  if (variable.space == Space::shared)
    return {.exists = true, .space = Space::shared, .offset = offsets_.at(&variable)};
  return {.exists = true, .space = variable.space, .offset = global_address(module_, variable)};
}

FunctionImage* Linker::callee(std::string_view name) {
  for (FunctionImage& image : images_)
    if (image.function->name == name) return &image;
  return nullptr;
}

void Linker::collect_names(const Function& function, int scope, const TextOperand& operand) {
  for (const TextOperand& part : operand.parts) collect_names(function, scope, part);
  if (operand.name.empty() || operand.name[0] == '%') return;
  int found;
  const Variable* variable = find_in_scopes(function, scope, operand.name, found);
  if (variable == nullptr) {
    if (const auto it = module_.variables.find(operand.name); it != module_.variables.end()) variable = &it->second;
  }
  if (variable && variable->space == Space::shared &&
      std::find(shared_.begin(), shared_.end(), variable) == shared_.end())
    shared_.push_back(variable);
}

// Assigns places to a function and to all that it calls.
void Linker::collect(Function& function) {
  parse_body(module_, function);
  FunctionImage& image = images_.emplace_back();
  image.function = &function;
  image.first = images_.size() == 1 ? 0 : image.first;
  for (const TextInstruction& text : function.instructions) {
    for (const TextOperand& operand : text.operands) {
      collect_names(function, static_cast<int>(text.scope), operand);
      if (operand.kind != TextOperand::Kind::name) continue;
      calls_through_pointers_ |= text.words[0] == "call" && operand.name.starts_with('%');
      collect_called(operand.name);  // or its address is taken
    }
  }
}

void Linker::collect_called(std::string_view name) {
  const auto it = module_.functions.find(name);
  if (it == module_.functions.end() || it->second.is_entry || it->second.body.empty() || callee(name)) return;
  collect(it->second);
}

// What a pointer may lead to: every function whose address a variable begins with.
void Linker::collect_pointed() {
  for (const auto& [name, variable] : module_.variables)
    for (const auto& address : variable.addresses) collect_called(address.name);
}

void Linker::place_shared() {
  u64 end = kFirstShared;
  for (const Variable* variable : shared_) {
    if (variable->is_extern) continue;
    end = round_up_to(end, std::max<u32>(variable->alignment, 1));
    offsets_[variable] = static_cast<u32>(end);
    end += variable->bytes;
  }
  program_.static_shared_bytes = static_cast<u32>(end - kFirstShared);
  u32 alignment = 16;
  for (const Variable* variable : shared_)
    if (variable->is_extern) alignment = std::max(alignment, variable->alignment);
  program_.dynamic_shared_alignment = alignment;
  for (const Variable* variable : shared_)
    if (variable->is_extern) offsets_[variable] = static_cast<u32>(round_up_to(end, alignment));
}

void Linker::decode_one(FunctionImage& image, const TextInstruction& text) {
  Instruction in;
  const u32 first_name = static_cast<u32>(program_.names.size());
  Decoder decoder(*this, *image.function, text);
  const Entry* entry = find_entry(text);
  if (entry == nullptr) decoder.fail("unknown instruction ", text.words[0]);
  in.kind = entry->kind;
  in.guard = constant(1, 0);
  if (!text.guard.empty()) {
    TextOperand guard;
    guard.name = text.guard;
    in.guard = decoder.read(guard, Type::pred);
    in.guard_flip = text.guard_negated ? kAllLanes : 0;
  }
  entry->decode(decoder, text, in);
  program_.talks = program_.talks || may_talk(text);
  if (in.execute == nullptr) decoder.fail("this form of ", text.words[0], " is not supported");
  program_.code.push_back(in);
  program_.places.push_back({text.ptx_line, text.source, first_name, text.text});
}

void Linker::decode(FunctionImage& image) {
  current_ = &image;
  for (const TextInstruction& text : image.function->instructions) decode_one(image, text);
  Instruction end;
  end.execute = fall_off_the_end;
  end.guard = constant(1, 0);
  end.kind = Class::control;
  Place place;
  if (!program_.places.empty()) place = program_.places.back();
  place.first_name = static_cast<u32>(program_.names.size());
  program_.code.push_back(end);
  program_.places.push_back(place);
}

void Linker::link(std::string_view kernel) {
  const auto it = module_.functions.find(kernel);
  if (it == module_.functions.end() || !it->second.is_entry || it->second.body.empty())
    refuse("the module has no kernel ", kernel);
  Function& function = it->second;
  program_.kernel = std::string(kernel);
  program_.files = module_.files;
  program_.max_threads = function.max_threads;
  program_.max_registers = function.max_registers;
  std::copy_n(function.required_cluster, 3, program_.required_cluster);
  for (const Variable& variable : function.parameters) {
    const u32 offset = static_cast<u32>(round_up_to(program_.parameter_bytes, variable.alignment));
    program_.parameters.push_back(
        {std::string(variable.name), static_cast<u32>(variable.bytes), variable.alignment, offset});
    program_.parameter_bytes = offset + static_cast<u32>(variable.bytes);
  }
  collect(function);
  if (calls_through_pointers_) collect_pointed();
  u32 first = 0;
  for (FunctionImage& image : images_) {
    image.first = first;
    first += static_cast<u32>(image.function->instructions.size()) + 1;
  }
  place_shared();
  for (FunctionImage& image : images_) decode(image);
  watch_wgmma_registers(program_);
  program_.callers = module_.callers;
  program_.hits.resize(program_.code.size());
}

}  // namespace glm5::emulator
