// require(condition, parts...): a broken limit becomes an Error whose sentence is the parts, with file and line.
#pragma once

#include <source_location>
#include <sstream>
#include <stdexcept>

namespace glm5 {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Remembers where it was written, so that require() needs no macro.
struct Condition {
  bool holds;
  std::source_location where;
  template <class Bool>
  Condition(const Bool& value, std::source_location here = std::source_location::current())
      : holds(static_cast<bool>(value)), where(here) {}
};

template <class... Parts>
[[noreturn]] void fail(const std::source_location& where, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  const std::string_view path = where.file_name();
  const auto csrc = path.rfind("csrc/");
  text << " (" << (csrc == std::string_view::npos ? path : path.substr(csrc)) << ":" << where.line() << ")";
  throw Error(text.str());
}

template <class... Parts>
void require(Condition condition, const Parts&... parts) {
  if (!condition.holds) fail(condition.where, parts...);
}

}  // namespace glm5
