// A decoded kernel: instructions that name rows of lanes, ready to be executed for a whole warp at a time.
//
// A register is a row of 32 lanes: 2, 4, 8 or 16 bytes per lane by its declared width; a predicate is one u32 mask. An
// immediate is a row too, of constants, so that an operand is always a row and no executor asks what kind it has.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/types.h"

namespace glm5::emulator {

constexpr int kLanes = 32;
constexpr u32 kAllLanes = ~u32{0};

enum class Type : unsigned char {
  none, pred, b8, b16, b32, b64, b128, u8, u16, u32, u64, s8, s16, s32, s64,
  f16, f16x2, bf16, bf16x2, f32, f64, tf32, e4m3, e5m2, e4m3x2, e5m2x2, e8m0x2
};

enum class Space : unsigned char { generic, global, shared, local, param, constant };

// Which region of a warp a row lies in (Warp::base).
enum class Region : unsigned char { registers, constants, specials };

struct Operand {
  u32 offset : 30 = 0;  // bytes from the region's start
  u32 region : 2 = 0;
};

// What an executor did with the control flow.
enum class Step : int {
  next,     // the group goes on with the next instruction
  jumped,   // the group's pc (or the set of groups) was changed by the executor
  blocked,  // nothing happened: execute the same instruction again when something has changed (Group::wait says what)
  yielded,  // as next, but let another warp run first
};

struct Warp;
struct Instruction;
struct TouchedRegisters;
// mask: the lanes of the current group whose guard holds; never 0.
using Executor = Step (*)(Warp&, const Instruction&, u32 mask);

// How the counters classify an instruction.
enum class Class : unsigned char {
  integer,
  floating,
  conversion,
  move,
  memory,
  control,
  synchronisation,
  copy,
  matrix
};

struct Instruction {
  Executor execute = nullptr;
  Operand guard{};             // a predicate; a constant row of ones where there is no guard
  u32 guard_flip = 0;    // ~0 for @!p
  Operand d{}, a{}, b{}, c{};  // destination and sources; an address is row `a` plus `offset`
  i64 offset = 0;        // bytes added to an address, or an immediate
  u32 target = 0;        // branch: index of an instruction
  u32 detail = 0;        // belongs to the executor
  const Operand* list = nullptr;  // further operands (vectors, fragments), owned by the program
  u32 count = 0;         // of `list`
  Space space = Space::generic;
  bool address_is_64 = true;   // width of the address row
  bool is_volatile = false;    // volatile, relaxed, acquire or release: a synchronising access for the race check
  Class kind = Class::integer;
  const void* extra = nullptr;  // decoded data of one mnemonic, owned by the program (Program::keep)
};

// A line of the CUDA source. file indexes Program::files, 0 is unknown; caller indexes Program::callers: the line into
// which this one was inlined, 0 for none.
struct SourceLine {
  u32 file = 0, line = 0, caller = 0;
};

// Where an instruction stands, apart from the hot array.
struct Place {
  u32 ptx_line = 0;
  SourceLine source;      // by .loc
  u32 first_name = 0;     // of Program::names
  std::string_view text;  // the instruction as PTX writes it
};

// A register as an instruction names it: for the debugger.
struct NamedRow {
  std::string_view name;
  Operand row;
  Type type = Type::none;  // how the instruction takes it; a plain .b32 that was declared .f32 is the latter
  u32 bytes = 0;           // of a lane in the row; 0: a predicate
  bool is_written = false;
};

struct Hits {
  u64 warps = 0, lanes = 0;
  void operator+=(const Hits& other) {
    warps += other.warps;
    lanes += other.lanes;
  }
};

struct Parameter {
  std::string name;
  u32 bytes = 0, alignment = 1, offset = 0;
};

// One kernel with every function that it may call, linked into one array.
struct Program {
  std::string kernel;  // mangled name
  std::vector<Instruction> code;
  std::vector<Place> places;           // parallel to code
  std::vector<Hits> hits;              // parallel to code; summed over launches
  std::vector<std::string> files;
  std::vector<SourceLine> callers;     // by SourceLine::caller
  std::vector<NamedRow> names;         // of all instructions, in order
  std::vector<const TouchedRegisters*> touched_registers;  // by instruction, where any touches registers of a wgmma
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;
  std::vector<u8> constants;     // the constant rows
  u32 register_bytes = 0;        // one warp's registers and parameter areas of functions
  u32 static_shared_bytes = 0;   // from kFirstShared on
  u32 dynamic_shared_alignment = 16;
  u32 local_bytes = 0;           // of one lane
  u32 max_threads = 1024;        // .maxntid, .reqntid
  u32 required_cluster[3] = {0, 0, 0};  // .reqnctapercluster
  u32 max_registers = 255;
  bool talks = false;  // has instructions by which clusters may tell each other something while they run

  // Gives `value` the program's lifetime.
  template <class T>
  T* keep(T value) {
    T* owned = new T(std::move(value));
    kept_.push_back(owned);
    deleters_.push_back([](void* pointer) { delete static_cast<T*>(pointer); });
    return owned;
  }
  const std::string& file_of(const SourceLine& line) const { return files[line.file < files.size() ? line.file : 0]; }
  Program() = default;
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    for (size_t i = 0; i < kept_.size(); ++i) deleters_[i](kept_[i]);
  }

 private:
  std::vector<void (*)(void*)> deleters_;
  std::vector<void*> kept_;
};

constexpr int bytes_of(Type type) {
  switch (type) {
    case Type::b8: case Type::u8: case Type::s8: case Type::e4m3: case Type::e5m2: return 1;
    case Type::b16: case Type::u16: case Type::s16: case Type::f16: case Type::bf16:
    case Type::e4m3x2: case Type::e5m2x2: case Type::e8m0x2: return 2;
    case Type::b32:
    case Type::u32:
    case Type::s32:
    case Type::f32:
    case Type::f16x2:
    case Type::bf16x2:
    case Type::tf32:
    case Type::pred: return 4;
    case Type::b64: case Type::u64: case Type::s64: case Type::f64: return 8;
    case Type::b128: return 16;
    case Type::none: return 0;
  }
  return 0;
}

}  // namespace glm5::emulator
