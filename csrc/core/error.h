// require(condition, parts...): a broken limit becomes an Error whose sentence is the parts, with file and line.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string_view>

namespace glm5 {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A line of a source file, filled by default arguments: the builtins give the caller's. (clang has std::source_location
// from version 16 on only.)
struct Place {
  const char* file;
  int line;
};

// Remembers where it was written, so that require() needs no macro.
struct Condition {
  bool holds;
  Place where;
  template <class Bool>
  Condition(const Bool& value, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : holds(static_cast<bool>(value)), where{file, line} {}
};

template <class... Parts>
[[noreturn]] void fail(const Place& where, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  const std::string_view path = where.file;
  const auto csrc = path.rfind("csrc/");
  text << " (" << (csrc == std::string_view::npos ? path : path.substr(csrc)) << ":" << where.line << ")";
  throw Error(text.str());
}

template <class... Parts>
void require(Condition condition, const Parts&... parts) {
  if (!condition.holds) fail(condition.where, parts...);
}

}  // namespace glm5
