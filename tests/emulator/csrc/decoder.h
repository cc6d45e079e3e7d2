// Text instruction -> Instruction. Tables map a mnemonic to its decoder; this class is what a decoder works with.
//
// Adding an instruction is an Entry in one of the decode_*.cpp tables, its decoder, and an executor.
#pragma once

#include <deque>
#include <initializer_list>
#include <map>
#include <span>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "program.h"
#include "ptx_parser.h"

namespace glm5::emulator {

class Decoder;
using Decode = void (*)(Decoder&, const TextInstruction&, Instruction&);

struct Entry {
  std::string_view mnemonic;  // whole words: "cp.async.bulk.tensor"; the longest that fits wins
  std::string_view section;   // of the PTX ISA
  Decode decode;
  Class kind = Class::integer;
};

// The tables. Each decode_*.cpp gives one.
std::span<const Entry> integer_entries();
std::span<const Entry> carry_entries();
std::span<const Entry> float_entries();
std::span<const Entry> conversion_entries();
std::span<const Entry> memory_entries();
std::span<const Entry> atomic_entries();
std::span<const Entry> control_entries();
std::span<const Entry> barrier_entries();
std::span<const Entry> warp_entries();
std::span<const Entry> async_entries();  // mbarrier, cp.async*, fence, wgmma, matrix

class Linker;

class Decoder {
 public:
  Decoder(Linker& linker, Function& function, const TextInstruction& text)
      : linker_(linker), function_(function), text_(text) {}

  // The row of a register, a special register or an immediate, of exactly bytes_of(type) per lane (pred: a mask).
  Operand read(const TextOperand& operand, Type type);
  // As read, for ld, st and cvt: the register may be wider than the type. `width`: bytes per lane of the row found.
  Operand read_wide(const TextOperand& operand, Type type, int& width);
  // The row of a destination register. `_` gives a scratch row.
  Operand write(const TextOperand& operand, Type type);
  Operand write_wide(const TextOperand& operand, Type type, int& width);
  // [base + offset] into in.a, in.offset, in.address_is_64. Base: register, variable or immediate. Fills in.space with
  // `space`. Shared variables become window addresses, all others host addresses.
  void address(const TextOperand& operand, Space space, Instruction& in);
  // The same for a second address of an instruction: row, byte offset, and whether the row is 64 bits wide.
  struct AddressRow {
    Operand row;
    i64 offset = 0;
    bool is_64 = true;
  };
  AddressRow address_row(const TextOperand& operand, Space space);
  i64 immediate(const TextOperand& operand);
  // A constant row: 32 lanes of `bytes` each (pred: mask ~0 or 0).
  Operand constant(u64 bits, int bytes);
  // Owned by the program.
  const Operand* keep_list(std::vector<Operand> operands);
  template <class T>
  const T* keep(T value);
  u32 label(const TextOperand& operand);
  bool is_register(const TextOperand& operand) const;
  const Prototype* prototype(const TextOperand& operand) const;  // null where there is none of this name
  Type declared_type(const TextOperand& operand) const;

  // Modifiers: the words after the first.
  bool has(std::string_view word) const;
  // The n-th word (from the end: -1 is the last) as a type; fails where it is none.
  Type type_at(int index) const;
  static Type type_named(std::string_view word);  // Type::none where it is none
  static std::string_view name_of(Type type);
  // Fails for any modifier that is not in the list and not a type.
  void allow(std::initializer_list<std::string_view> words) const;
  // The number of operands must be one of min..max.
  void operands(size_t min, size_t max) const;

  // Ends decoding: names the instruction, its file and line.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    std::ostringstream sentence;
    (sentence << ... << parts);
    fail_with(sentence.str());
  }
  [[noreturn]] void fail_with(const std::string& sentence) const;

  Linker& linker() { return linker_; }
  Function& function() { return function_; }

 private:
  void note_name(std::string_view name, Operand row, Type type, int bytes);
  Linker& linker_;
  Function& function_;
  const TextInstruction& text_;
};

// One function within a program.
struct FunctionImage {
  Function* function = nullptr;
  u32 first = 0;  // index of its first instruction; text instruction i is first + i, a final exit or return follows
  std::map<std::pair<int, std::string_view>, u32> registers;  // (scope, name) -> byte offset
  std::map<std::pair<int, std::string_view>, u32> areas;  // .param variables: byte offset; scope -1 is the signature
};

// Where a variable of any kind lives.
struct PlaceOfVariable {
  bool exists = false;
  Space space = Space::generic;
  u64 offset = 0;                    // in its window, in local memory or in the parameter block; else a host address
  bool is_kernel_parameter = false;
  u32 area = 0, lane_bytes = 0;      // .param variables of functions and calls: a row of lane_bytes per lane
};

// Links a kernel and what it calls into one program.
class Linker {
 public:
  Linker(Module& module, Program& program) : module_(module), program_(program) {}
  void link(std::string_view kernel);

  Module& module() { return module_; }
  Program& program() { return program_; }
  FunctionImage& image() { return *current_; }
  u32 allocate_registers(u32 bytes);
  Operand constant(u64 bits, int bytes);
  PlaceOfVariable variable(const Function& function, int scope, std::string_view name);
  // The image of a function with a body; null for one without.
  FunctionImage* callee(std::string_view name);
  std::deque<FunctionImage>& images() { return images_; }
  // The row of a .param variable in the signature of an image.
  PlaceOfVariable signature_area(FunctionImage& image, const Variable& variable);

 private:
  void collect(Function& function);
  void collect_called(std::string_view name);
  void collect_pointed();
  void collect_names(const Function& function, int scope, const TextOperand& operand);
  void place_shared();
  void decode(FunctionImage& image);
  void decode_one(FunctionImage& image, const TextInstruction& text);
  PlaceOfVariable area(FunctionImage& image, int scope, const Variable& variable);
  Module& module_;
  Program& program_;
  FunctionImage* current_ = nullptr;
  bool calls_through_pointers_ = false;
  std::deque<FunctionImage> images_;
  std::vector<const Variable*> shared_;
  std::map<const Variable*, u32> offsets_;  // of shared and local variables
  std::map<std::pair<u64, int>, u32> constants_;
};

// Host address of a .global or .const variable; allocated and initialised on first use.
u64 global_address(Module& module, const Variable& variable);

// Of all tables.
std::span<const Entry* const> all_entries();
const Entry* find_entry(const TextInstruction& text);

template <class T>
const T* Decoder::keep(T value) {
  return linker_.program().keep(std::move(value));
}

}  // namespace glm5::emulator
