#include "decoder.h"

#include <algorithm>
#include <cctype>

#include "lanes.h"
#include "report.h"
#include "specials.h"

namespace glm5::emulator {
namespace {

struct NamedType {
  std::string_view name;
  Type type;
};
constexpr NamedType kTypes[] = {
    {"pred", Type::pred}, {"b8", Type::b8}, {"b16", Type::b16}, {"b32", Type::b32}, {"b64", Type::b64},
    {"b128", Type::b128}, {"u8", Type::u8}, {"u16", Type::u16}, {"u32", Type::u32}, {"u64", Type::u64},
    {"s8", Type::s8}, {"s16", Type::s16}, {"s32", Type::s32}, {"s64", Type::s64}, {"f16", Type::f16},
    {"f16x2", Type::f16x2}, {"bf16", Type::bf16}, {"bf16x2", Type::bf16x2}, {"f32", Type::f32}, {"f64", Type::f64},
    {"tf32", Type::tf32}, {"e4m3", Type::e4m3}, {"e5m2", Type::e5m2}, {"e4m3x2", Type::e4m3x2},
    {"e5m2x2", Type::e5m2x2}, {"ue8m0x2", Type::e8m0x2},
};

constexpr u32 row_bytes(Type type) { return type == Type::pred ? 4 : static_cast<u32>(bytes_of(type)) * kLanes; }

Operand in_registers(u32 offset) {
  Operand operand;
  operand.offset = offset & 0x3fffffff;
  operand.region = static_cast<u32>(Region::registers);
  return operand;
}

// The scope and type of a register, looked for outwards.
bool find_register(const Function& function, int scope, std::string_view name, int& found, Type& type) {
  for (; scope >= 0; scope = function.scopes[scope].parent) {
    const Scope& names = function.scopes[scope];
    found = scope;
    if (const auto it = names.registers.find(name); it != names.registers.end()) {
      type = it->second;
      return true;
    }
    for (const auto& [prefix, range] : names.ranges) {
      if (name.size() <= prefix.size() || !name.starts_with(prefix)) continue;
      const auto digits = name.substr(prefix.size());
      if (!std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isdigit(c); })) continue;
      if (std::stoul(std::string(digits)) >= range.second) continue;
      type = range.first;
      return true;
    }
  }
  return false;
}

u64 immediate_bits(const TextOperand& operand, Type type) {
  using Kind = TextOperand::Kind;
  if (operand.kind == Kind::float64 && type == Type::f32) {
    const float narrow = static_cast<float>(__builtin_bit_cast(double, operand.bits));
    return __builtin_bit_cast(u32, narrow);
  }
  if (operand.kind == Kind::float32 && type == Type::f64) {
    const double wide = __builtin_bit_cast(float, static_cast<u32>(operand.bits));
    return __builtin_bit_cast(u64, wide);
  }
  return operand.bits;
}

}  // namespace

std::string_view Decoder::name_of(Type type) {
  for (const NamedType& named : kTypes)
    if (named.type == type) return named.name;
  return "";
}

Type Decoder::type_named(std::string_view word) {
  for (const NamedType& named : kTypes)
    if (named.name == word) return named.type;
  return Type::none;
}

bool Decoder::is_register(const TextOperand& operand) const {
  int scope;
  Type type;
  return operand.kind == TextOperand::Kind::name &&
         find_register(function_, static_cast<int>(text_.scope), operand.name, scope, type);
}

const Prototype* Decoder::prototype(const TextOperand& operand) const {
  for (int scope = static_cast<int>(text_.scope); scope >= 0; scope = function_.scopes[scope].parent) {
    const auto& prototypes = function_.scopes[scope].prototypes;
    if (const auto it = prototypes.find(operand.name); it != prototypes.end()) return &it->second;
  }
  return nullptr;
}

Type Decoder::declared_type(const TextOperand& operand) const {
  int scope;
  Type type = Type::none;
  if (operand.kind == TextOperand::Kind::name)
    find_register(function_, static_cast<int>(text_.scope), operand.name, scope, type);
  return type;
}

void Decoder::note_name(std::string_view name, Operand row, Type type, int bytes) {
  linker_.program().names.push_back({name, row, type, static_cast<u32>(bytes)});
}

Operand Decoder::read_wide(const TextOperand& operand, Type type, int& width) {
  width = bytes_of(type);
  using Kind = TextOperand::Kind;
  if (operand.kind == Kind::integer || operand.kind == Kind::float32 || operand.kind == Kind::float64) {
    if (type == Type::pred) return linker_.constant(operand.bits ? 1 : 0, 0);
    return linker_.constant(immediate_bits(operand, type), width);
  }
  if (operand.kind != Kind::name) fail("an operand is not a register or an immediate");
  int scope;
  Type declared;
  if (find_register(function_, static_cast<int>(text_.scope), operand.name, scope, declared)) {
    width = declared == Type::pred ? 0 : bytes_of(declared);
    if ((declared == Type::pred) != (type == Type::pred)) fail("register ", operand.name, " has the wrong kind");
    auto [it, is_new] = linker_.image().registers.try_emplace({scope, operand.name}, 0);
    if (is_new) it->second = linker_.allocate_registers(row_bytes(declared));
    const bool is_plain = type == Type::b16 || type == Type::b32 || type == Type::b64;
    note_name(operand.name, in_registers(it->second), is_plain && is_float(declared) ? declared : type, width);
    return in_registers(it->second);
  }
  Special special;
  if (find_special(operand.name, special, width)) {
    note_name(operand.name, special_row(special), type, width);
    return special_row(special);
  }
  fail("unknown register ", operand.name);
}

Operand Decoder::read(const TextOperand& operand, Type type) {
  int width;
  const Operand found = read_wide(operand, type, width);
  if (type != Type::pred && width != bytes_of(type)) {
    Special special;
    int bytes;
    const bool is_special = find_special(operand.name, special, bytes);
    if (!is_special || bytes < bytes_of(type))
      fail("register ", operand.name, " has ", width, " bytes, not ", bytes_of(type));
  }
  return found;
}

Operand Decoder::write_wide(const TextOperand& operand, Type type, int& width) {
  if (operand.kind == TextOperand::Kind::sink) {
    width = bytes_of(type);
    return special_row(Special::scratch);
  }
  if (!is_register(operand)) fail("the destination is not a register");
  const Operand found = read_wide(operand, type, width);
  linker_.program().names.back().is_written = true;
  return found;
}

Operand Decoder::write(const TextOperand& operand, Type type) {
  int width;
  const Operand found = write_wide(operand, type, width);
  if (type != Type::pred && width != bytes_of(type)) {
    fail("register ", operand.name, " has ", width, " bytes, not ", bytes_of(type));
  }
  return found;
}

i64 Decoder::immediate(const TextOperand& operand) {
  if (operand.kind != TextOperand::Kind::integer) fail("an operand must be an integer constant");
  return static_cast<i64>(operand.bits);
}

Operand Decoder::constant(u64 bits, int bytes) { return linker_.constant(bits, bytes); }

const Operand* Decoder::keep_list(std::vector<Operand> operands) { return keep(std::move(operands))->data(); }

u32 Decoder::label(const TextOperand& operand) {
  for (int scope = static_cast<int>(text_.scope); scope >= 0; scope = function_.scopes[scope].parent) {
    const auto& labels = function_.scopes[scope].labels;
    if (const auto it = labels.find(operand.name); it != labels.end()) return linker_.image().first + it->second;
  }
  fail("unknown label ", operand.name);
}

Decoder::AddressRow Decoder::address_row(const TextOperand& operand, Space space) {
  AddressRow found;
  found.offset = operand.offset;
  if (operand.name.empty()) {
    found.row = linker_.constant(0, 8);
    return found;
  }
  TextOperand base;
  base.name = operand.name;
  if (is_register(base)) {
    const Type type = declared_type(base);
    if (bytes_of(type) != 8 && bytes_of(type) != 4) fail("an address must be in a 32- or 64-bit register");
    found.is_64 = bytes_of(type) == 8;
    found.row = read(base, type);
    return found;
  }
  (void)space;
  const auto variable = linker_.variable(function_, static_cast<int>(text_.scope), operand.name);
  if (!variable.exists) fail("unknown name ", operand.name);
  found.offset += static_cast<i64>(variable.offset);
  switch (variable.space) {
    case Space::shared: found.row = special_row(Special::shared_base_64); break;
    case Space::local: found.row = special_row(Special::local_base); break;
    case Space::param:
      if (!variable.is_kernel_parameter) fail("the address of a function's parameter is not supported");
      found.row = special_row(Special::parameters);
      break;
    default:
      found.row = linker_.constant(variable.offset, 8);
      found.offset = operand.offset;
  }
  return found;
}

void Decoder::address(const TextOperand& operand, Space space, Instruction& in) {
  if (operand.kind != TextOperand::Kind::address) fail("an operand is not an address");
  const AddressRow found = address_row(operand, space);
  in.a = found.row;
  in.offset = found.offset;
  in.address_is_64 = found.is_64;
  in.space = space;
}

bool Decoder::has(std::string_view word) const {
  return std::find(text_.words.begin() + 1, text_.words.end(), word) != text_.words.end();
}

Type Decoder::type_at(int index) const {
  const int at = index < 0 ? static_cast<int>(text_.words.size()) + index : index;
  const Type type = at > 0 && at < static_cast<int>(text_.words.size()) ? type_named(text_.words[at]) : Type::none;
  if (type == Type::none) fail("a type is missing");
  return type;
}

void Decoder::allow(std::initializer_list<std::string_view> words) const {
  for (size_t i = 1; i < text_.words.size(); ++i) {
    const auto word = text_.words[i];
    if (type_named(word) != Type::none || std::find(words.begin(), words.end(), word) != words.end()) continue;
    fail("modifier .", word, " is not supported");
  }
}

void Decoder::operands(size_t min, size_t max) const {
  const size_t count = text_.operands.size();
  if (count < min || count > max) fail("expected ", min, " to ", max, " operands, got ", count);
}

void Decoder::fail_with(const std::string& sentence) const {
  Report report;
  report.check = "instruction";
  report.kernel = demangled(linker_.program().kernel);
  const auto& files = linker_.module().files;
  report.file = text_.source.file < files.size() ? files[text_.source.file] : "";
  report.line = text_.source.line;
  report.ptx_line = text_.ptx_line;
  report.instruction = std::string(text_.text);
  report.sentence = sentence;
  throw Fault(report);
}

namespace {

bool words_match(std::string_view mnemonic, const std::vector<std::string_view>& words, size_t& count) {
  count = 0;
  while (true) {
    const size_t dot = mnemonic.find('.');
    if (count >= words.size() || words[count] != mnemonic.substr(0, dot)) return false;
    ++count;
    if (dot == std::string_view::npos) return true;
    mnemonic.remove_prefix(dot + 1);
  }
}

}  // namespace

std::span<const Entry* const> all_entries() {
  static const std::vector<const Entry*> all = [] {
    std::vector<const Entry*> entries;
    for (const auto table : {integer_entries(), carry_entries(), float_entries(), conversion_entries(),
                             memory_entries(), atomic_entries(), barrier_entries(), control_entries(), warp_entries(),
                             async_entries()})
      for (const Entry& entry : table) entries.push_back(&entry);
    return entries;
  }();
  return all;
}

const Entry* find_entry(const TextInstruction& text) {
  static const std::multimap<std::string_view, const Entry*> by_first_word = [] {
    std::multimap<std::string_view, const Entry*> map;
    for (const Entry* entry : all_entries()) map.insert({entry->mnemonic.substr(0, entry->mnemonic.find('.')), entry});
    return map;
  }();
  const Entry* best = nullptr;
  size_t best_count = 0;
  // add.s32 and add.f32 are different instructions: the last word decides between the two tables.
  const bool floating = Decoder::type_named(text.words.back()) >= Type::f16;
  const auto [begin, end] = by_first_word.equal_range(text.words[0]);
  for (auto it = begin; it != end; ++it) {
    size_t count;
    if (it->second->kind == (floating ? Class::integer : Class::floating)) continue;
    if (!words_match(it->second->mnemonic, text.words, count) || count <= best_count) continue;
    best = it->second;
    best_count = count;
  }
  return best;
}

}  // namespace glm5::emulator
