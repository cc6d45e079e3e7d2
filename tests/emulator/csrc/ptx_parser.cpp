#include "ptx_parser.h"

#include <array>
#include <cctype>
#include <cstdlib>
#include <cstring>

#include "decoder.h"
#include "report.h"

namespace glm5::emulator {
namespace {

bool is_name_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%'; }

// A cursor over text that counts lines.
class Text {
 public:
  Text(std::string_view text, u32 first_line) : text_(text), line_(first_line) {}

  bool done() { return skip(), at_ >= text_.size(); }
  char peek() { return skip(), at_ < text_.size() ? text_[at_] : '\0'; }
  u32 line() const { return line_; }
  size_t position() const { return at_; }
  std::string_view since(size_t begin) const { return text_.substr(begin, at_ - begin); }

  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail("expected '", c, "'");
  }
  // Name characters, and dots where `dotted`.
  std::string_view name(bool dotted = false) {
    skip();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_name_char(text_[at_]) || (dotted && text_[at_] == '.'))) ++at_;
    if (begin == at_) fail("expected a name");
    return since(begin);
  }
  std::string_view mnemonic() {
    skip();
    const size_t begin = at_;
    while (at_ < text_.size() && (is_name_char(text_[at_]) || text_[at_] == '.' || text_[at_] == ':')) ++at_;
    return since(begin);
  }
  // A label: a name and a single colon.
  bool take_label(std::string_view& label) {
    skip();
    size_t end = at_;
    while (end < text_.size() && is_name_char(text_[end])) ++end;
    size_t colon = end;
    while (colon < text_.size() && (text_[colon] == ' ' || text_[colon] == '\t')) ++colon;
    const bool is_label = end > at_ && text_.substr(colon, 1) == ":" && text_.substr(colon, 2) != "::";
    if (!is_label) return false;
    label = text_.substr(at_, end - at_);
    at_ = colon + 1;
    return true;
  }
  std::string_view rest_of_line() {
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    return since(begin);
  }
  std::string_view until(char c) {
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] != c) advance();
    const auto found = since(begin);
    if (at_ < text_.size()) ++at_;
    return found;
  }
  std::string_view quoted() {
    expect('"');
    return until('"');
  }
  // The inside of { }, braces in it included.
  std::string_view braces() {
    expect('{');
    const size_t begin = at_;
    for (int depth = 1;;) {
      if (done()) fail("a { without }");
      const char c = text_[at_];
      if (c == '"') {
        quoted();
        continue;
      }
      depth += c == '{' ? 1 : c == '}' ? -1 : 0;
      if (depth == 0) break;
      ++at_;
    }
    const auto inside = since(begin);
    ++at_;
    return inside;
  }
  // An integer or hex float: its bits and kind.
  u64 number(TextOperand::Kind& kind) {
    skip();
    const bool negative = at_ < text_.size() && text_[at_] == '-';
    at_ += negative;
    const char* begin = text_.data() + at_;
    kind = TextOperand::Kind::integer;
    char* end = nullptr;
    u64 value = 0;
    if (begin[0] == '0' && std::strchr("fFdD", begin[1]) && begin[1]) {
      kind = std::tolower(begin[1]) == 'f' ? TextOperand::Kind::float32 : TextOperand::Kind::float64;
      value = std::strtoull(std::string(begin + 2, kind == TextOperand::Kind::float32 ? 8 : 16).c_str(), nullptr, 16);
      at_ += kind == TextOperand::Kind::float32 ? 10 : 18;
      if (negative) value ^= u64{1} << (kind == TextOperand::Kind::float32 ? 31 : 63);
      return value;
    }
    if (begin[0] == '0' && (begin[1] == 'b' || begin[1] == 'B')) {
      value = std::strtoull(begin + 2, &end, 2);
    } else {
      value = std::strtoull(begin, &end, 0);
    }
    if (end == begin) fail("expected a number");
    at_ += static_cast<size_t>(end - begin);
    if (at_ < text_.size() && text_[at_] == 'U') ++at_;
    return negative ? u64{0} - value : value;
  }
  bool at_number() {
    const char c = peek();
    return std::isdigit(static_cast<unsigned char>(c)) ||
           (c == '-' && at_ + 1 < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_ + 1])));
  }
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) {
    const auto near = text_.substr(at_, 40);
    refuse("PTX line ", line_, ": ", parts..., " at '", near.substr(0, near.find('\n')), "'");
  }

 private:
  void advance() {
    if (text_[at_] == '\n') ++line_;
    ++at_;
  }
  void skip() {
    while (at_ < text_.size()) {
      if (std::isspace(static_cast<unsigned char>(text_[at_]))) {
        advance();
      } else if (text_.compare(at_, 2, "//") == 0) {
        rest_of_line();
      } else if (text_.compare(at_, 2, "/*") == 0) {
        while (at_ < text_.size() && text_.compare(at_, 2, "*/") != 0) advance();
        at_ += 2;
      } else {
        return;
      }
    }
  }
  std::string_view text_;
  size_t at_ = 0;
  u32 line_;
};

TextOperand parse_operand(Text& text);

std::vector<TextOperand> parse_operands(Text& text, char end) {
  std::vector<TextOperand> operands;
  while (!text.take(end)) {
    operands.push_back(parse_operand(text));
    if (text.peek() != end) text.expect(',');
  }
  return operands;
}

// name, name+4, name+-4
void parse_base(Text& text, TextOperand& operand) {
  if (text.at_number()) {
    TextOperand::Kind kind;
    operand.offset = static_cast<i64>(text.number(kind));
  } else {
    operand.name = text.name(true);
  }
  TextOperand::Kind kind;
  if (text.take('+')) {
    operand.offset += static_cast<i64>(text.number(kind));
  } else if (!operand.name.empty() && text.peek() == '-') {
    operand.offset += static_cast<i64>(text.number(kind));
  }
}

TextOperand parse_operand(Text& text) {
  TextOperand operand;
  if (text.take('{')) {
    operand.kind = TextOperand::Kind::vector;
    operand.parts = parse_operands(text, '}');
  } else if (text.take('(')) {
    operand.kind = TextOperand::Kind::list;
    operand.parts = parse_operands(text, ')');
  } else if (text.take('[')) {
    operand.kind = TextOperand::Kind::address;
    parse_base(text, operand);
    while (text.take(',')) operand.parts.push_back(parse_operand(text));
    text.expect(']');
  } else if (text.at_number()) {
    operand.bits = text.number(operand.kind);
  } else {
    operand.negated = text.take('!');
    parse_base(text, operand);
    if (operand.name == "_") operand.kind = TextOperand::Kind::sink;
    if (text.take('|')) {
      TextOperand pair;
      pair.kind = TextOperand::Kind::pair;
      pair.parts = {operand, parse_operand(text)};
      return pair;
    }
  }
  return operand;
}

std::vector<std::string_view> cut_at_dots(std::string_view mnemonic) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t dot = mnemonic.find('.');
    words.push_back(mnemonic.substr(0, dot));
    if (dot == std::string_view::npos) return words;
    mnemonic.remove_prefix(dot + 1);
  }
}

void parse_initial(Text& text, Variable& variable, int element_bytes) {
  auto add = [&](auto& self) -> void {
    if (text.take('{')) {
      while (!text.take('}')) {
        self(self);
        text.take(',');
      }
      return;
    }
    u64 value = 0;
    if (text.at_number()) {
      TextOperand::Kind kind;
      value = text.number(kind);
    } else {
      TextOperand base;
      parse_base(text, base);
      bool is_generic = false;
      if (base.name == "generic" && text.take('(')) {
        is_generic = true;
        base = {};
        parse_base(text, base);
        text.expect(')');
      } else if (text.peek() == '(') {
        text.fail("this initialiser is not supported");
      }
      variable.addresses.push_back({variable.initial.size(), base.name, base.offset, is_generic});
    }
    for (int byte = 0; byte < element_bytes; ++byte) variable.initial.push_back(static_cast<u8>(value >> (8 * byte)));
  };
  add(add);
}

// After the space word: [.align n] .type name[dimensions]... [= initial]. Several names share a type.
std::vector<Variable> parse_variables(Text& text, Space space, bool is_extern) {
  Variable base;
  base.space = space;
  base.is_extern = is_extern;
  u32 alignment = 0;
  int vector = 1;
  while (text.peek() == '.') {
    text.expect('.');
    const auto word = text.name();
    TextOperand::Kind kind;
    if (word == "align") alignment = static_cast<u32>(text.number(kind));
    else if (word == "v2") vector = 2;
    else if (word == "v4") vector = 4;
    else if (word == "ptr" || word == "global" || word == "shared" || word == "const" || word == "local") continue;
    else if ((base.type = Decoder::type_named(word)) == Type::none) text.fail("unknown type .", word);
  }
  const int element = base.type == Type::pred ? 1 : bytes_of(base.type) * vector;
  base.alignment = alignment ? alignment : static_cast<u32>(element);
  std::vector<Variable> variables;
  do {
    Variable variable = base;
    variable.name = text.name(true);
    variable.bytes = static_cast<u64>(element);
    bool is_open = false;
    while (text.take('[')) {
      TextOperand::Kind kind;
      if (text.peek() == ']') is_open = true;
      else variable.bytes *= text.number(kind);
      text.expect(']');
    }
    if (text.take('=')) parse_initial(text, variable, element);
    if (is_open) variable.bytes = variable.initial.size();
    variables.push_back(std::move(variable));
  } while (text.take(','));
  return variables;
}

std::vector<Variable> parse_parameters(Text& text) {
  std::vector<Variable> parameters;
  if (!text.take('(')) return parameters;
  while (!text.take(')')) {
    text.expect('.');
    const auto word = text.name();
    if (word != "param" && word != "reg") text.fail("unknown parameter space .", word);
    // A declaration's parameters end at the next comma, which belongs to the list here.
    Variable parameter;
    parameter.space = Space::param;
    TextOperand::Kind kind;
    u32 alignment = 0;
    while (text.take('.')) {
      const auto part = text.name();
      if (part == "align") alignment = static_cast<u32>(text.number(kind));
      else if (const Type type = Decoder::type_named(part); type != Type::none) parameter.type = type;
    }
    parameter.name = text.name();
    parameter.bytes = static_cast<u64>(bytes_of(parameter.type));
    parameter.alignment = alignment ? alignment : static_cast<u32>(parameter.bytes);
    if (text.take('[')) {
      if (text.peek() != ']') parameter.bytes *= text.number(kind);
      text.expect(']');
    }
    parameters.push_back(parameter);
    text.take(',');
  }
  return parameters;
}

void parse_function(Text& text, Module& module, bool is_entry) {
  Function function;
  function.is_entry = is_entry;
  if (!is_entry) function.results = parse_parameters(text);
  function.name = text.name();
  function.parameters = parse_parameters(text);
  TextOperand::Kind kind;
  while (text.peek() != '{' && text.peek() != ';') {
    text.expect('.');
    const auto word = text.name();
    u64 values[3] = {1, 1, 1};
    int count = 0;
    while (text.at_number() && count < 3) {
      values[count++] = text.number(kind);
      if (!text.take(',')) break;
    }
    const u32 product = static_cast<u32>(values[0] * values[1] * values[2]);
    if (word == "maxntid" || word == "reqntid") function.max_threads = product;
    else if (word == "maxnreg") function.max_registers = product;
    else if (word == "reqnctapercluster")
      for (int d = 0; d < 3; ++d) function.required_cluster[d] = static_cast<u32>(values[d]);
    else if (word == "pragma" || word == "abi_preserve") text.until(';');
  }
  if (text.take(';')) {
    module.functions.try_emplace(function.name, function);
    return;
  }
  function.first_line = text.line();
  function.body = text.braces();
  module.functions[function.name] = std::move(function);
}

void parse_reg(Text& text, Scope& scope) {
  text.expect('.');
  const Type type = Decoder::type_named(text.name());
  if (type == Type::none) text.fail("unknown register type");
  do {
    const auto name = text.name();
    if (text.take('<')) {
      TextOperand::Kind kind;
      scope.ranges.push_back({name, {type, static_cast<u32>(text.number(kind))}});
      text.expect('>');
    } else {
      scope.registers[name] = type;
    }
  } while (text.take(','));
  text.expect(';');
}

// The .loc directives of a body: `.loc file line column [, function_name label, inlined_at file line column]`, where
// the place after inlined_at had a .loc of its own before.
class Locations {
 public:
  explicit Locations(Module& module) : module_(module) {}
  SourceLine current;

  void parse(Text& text) {
    const Point here = point(text);
    current = {here[0], here[1], 0};
    if (text.take(',')) {
      text.until(',');
      if (text.name() != "inlined_at") text.fail("expected inlined_at");
      const Point above = point(text);
      const auto known = seen_.find(above);
      current.caller = caller({above[0], above[1], known == seen_.end() ? 0 : known->second});
    }
    seen_[here] = current.caller;
  }

 private:
  using Point = std::array<u32, 3>;  // file, line, column
  Point point(Text& text) {
    TextOperand::Kind kind;
    Point found;
    for (u32& part : found) part = static_cast<u32>(text.number(kind));
    return found;
  }
  u32 caller(SourceLine line) {
    auto [it, is_new] = callers_.try_emplace({line.file, line.line, line.caller}, 0);
    if (is_new) {
      it->second = static_cast<u32>(module_.callers.size());
      module_.callers.push_back(line);
    }
    return it->second;
  }
  Module& module_;
  std::map<Point, u32> seen_, callers_;
};

// A directive inside a body, after its dot. label: the last one before it.
void parse_body_directive(Text& text, Scope& scope, Locations& locations, std::string_view label) {
  const auto word = text.name();
  if (word == "loc") {
    locations.parse(text);
  } else if (word == "reg") {
    parse_reg(text, scope);
  } else if (word == "local" || word == "shared" || word == "param") {
    const Space space = word == "local" ? Space::local : word == "shared" ? Space::shared : Space::param;
    for (auto& variable : parse_variables(text, space, false)) scope.variables[variable.name] = variable;
    text.expect(';');
  } else if (word == "callprototype") {
    Prototype& prototype = scope.prototypes[label];
    prototype.results = parse_parameters(text);
    text.name();  // _
    prototype.parameters = parse_parameters(text);
    text.until(';');  // .noreturn and its like
  } else if (word == "pragma") {
    text.until(';');
  } else {
    text.fail("directive .", word, " is not supported");
  }
}

}  // namespace

void parse_body(Module& module, Function& function) {
  if (function.is_parsed) return;
  function.is_parsed = true;
  Text text(function.body, function.first_line);
  function.scopes.emplace_back();
  int scope = 0;
  Locations locations(module);
  std::string_view label;
  while (!text.done()) {
    if (text.take('{')) {
      function.scopes.emplace_back().parent = scope;
      scope = static_cast<int>(function.scopes.size()) - 1;
    } else if (text.take('}')) {
      scope = function.scopes[scope].parent;
      if (scope < 0) text.fail("a } without {");
    } else if (text.take('.')) {
      parse_body_directive(text, function.scopes[scope], locations, label);
    } else if (text.take_label(label)) {
      function.scopes[scope].labels[label] = static_cast<u32>(function.instructions.size());
    } else if (!text.take(';')) {
      TextInstruction instruction;
      instruction.scope = static_cast<u32>(scope);
      if (text.take('@')) {
        instruction.guard_negated = text.take('!');
        instruction.guard = text.name();
      }
      text.peek();
      const size_t begin = text.position();
      instruction.ptx_line = text.line();
      instruction.source = locations.current;
      instruction.words = cut_at_dots(text.mnemonic());
      if (instruction.words[0].empty()) text.fail("expected an instruction");
      instruction.operands = parse_operands(text, ';');
      instruction.text = text.since(begin);
      function.instructions.push_back(std::move(instruction));
    }
  }
}

std::unique_ptr<Module> parse_module(std::string owned) {
  auto module = std::make_unique<Module>();
  module->text = std::move(owned);
  Text text(module->text, 1);
  TextOperand::Kind kind;
  bool is_extern = false;
  while (!text.done()) {
    text.expect('.');
    const auto word = text.name();
    if (word == "version") {
      text.rest_of_line();
    } else if (word == "target") {
      module->target = std::string(text.name());
      text.rest_of_line();
    } else if (word == "address_size") {
      if (text.number(kind) != 64) text.fail("only 64-bit addresses are supported");
    } else if (word == "file") {
      const u64 index = text.number(kind);
      if (module->files.size() <= index) module->files.resize(index + 1);
      module->files[index] = std::string(text.quoted());
      text.rest_of_line();
    } else if (word == "section") {
      text.expect('.');
      text.name();
      text.braces();
    } else if (word == "extern" || word == "visible" || word == "weak" || word == "common") {
      is_extern = word == "extern";
    } else if (word == "entry" || word == "func") {
      parse_function(text, *module, word == "entry");
      is_extern = false;
    } else if (word == "global" || word == "const" || word == "shared" || word == "local") {
      const Space space = word == "global" ? Space::global : word == "const" ? Space::constant
                          : word == "shared" ? Space::shared : Space::local;
      for (auto& variable : parse_variables(text, space, is_extern))
        if (!is_extern || !module->variables.contains(variable.name)) module->variables[variable.name] = variable;
      text.expect(';');
      is_extern = false;
    } else if (word == "pragma" || word == "alias" || word == "branchtargets") {
      text.until(';');
    } else {
      text.fail("directive .", word, " is not supported");
    }
  }
  return module;
}

}  // namespace glm5::emulator
