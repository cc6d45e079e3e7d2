// PTX text -> module: variables, functions and their instructions as words and operands. Knows syntax, not semantics.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "program.h"

namespace glm5::emulator {

struct TextOperand {
  enum class Kind : unsigned char { name, integer, float32, float64, address, vector, pair, list, sink };
  Kind kind = Kind::name;
  bool negated = false;             // !p
  std::string_view name;            // register, special register, label, variable or function; of an address: its base
  u64 bits = 0;               // integer (two's complement), float32 or float64 bits
  i64 offset = 0;             // of an address
  std::vector<TextOperand> parts;   // {vector}, p|q, (list); of an address: [base, part, ...] e.g. {coordinates}
};

struct TextInstruction {
  std::string_view guard;           // empty: none
  bool guard_negated = false;
  std::string_view text;            // as written, without the guard
  std::vector<std::string_view> words;  // the mnemonic cut at dots: "ld", "shared::cta", "v2", "f32"
  std::vector<TextOperand> operands;
  u32 scope = 0, ptx_line = 0;
  SourceLine source;
};

struct Variable {
  std::string_view name;
  Space space = Space::generic;
  Type type = Type::b8;
  u64 bytes = 0;
  u32 alignment = 1;
  bool is_extern = false;
  std::vector<u8> initial;    // empty: zeros
  struct Address {                  // initial bytes that are the address of something
    u64 at;
    std::string_view name;
    i64 offset;
    bool is_generic;
  };
  std::vector<Address> addresses;
};

// The signature of the functions that a call through a pointer may meet.
struct Prototype {
  std::vector<Variable> results, parameters;
};

// A { } of a body. Names are resolved from the innermost scope outwards.
struct Scope {
  int parent = -1;
  std::map<std::string_view, Type> registers;
  std::vector<std::pair<std::string_view, std::pair<Type, u32>>> ranges;  // prefix<count>
  std::map<std::string_view, u32> labels;  // index of an instruction
  std::map<std::string_view, Variable> variables;
  std::map<std::string_view, Prototype> prototypes;  // by their labels
};

struct Function {
  std::string_view name, header, body;
  bool is_entry = false, is_parsed = false;
  u32 first_line = 0;                 // of the body in the module's text
  std::vector<Variable> parameters, results;
  u32 max_threads = 1024, max_registers = 255;
  u32 required_cluster[3] = {0, 0, 0};
  std::vector<Scope> scopes;
  std::vector<TextInstruction> instructions;
};

struct Module {
  std::string text;                          // owns what the views point into
  std::string target;                        // "sm_90a"
  std::vector<std::string> files = {""};     // .file n "..."
  std::vector<SourceLine> callers = {{}};    // where inlined lines were inlined
  std::map<std::string_view, Variable> variables;
  std::map<std::string_view, Function> functions;
  std::map<std::string_view, u64> addresses;  // of .global and .const variables that are in use
};

// Throws Refusal with the line for text that is not understood. Bodies are parsed by parse_body, on first use.
std::unique_ptr<Module> parse_module(std::string text);
void parse_body(Module& module, Function& function);

}  // namespace glm5::emulator
