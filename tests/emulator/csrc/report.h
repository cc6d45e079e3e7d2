// A fault of the program under test: where it happened, and a sentence that says what is wrong.
#pragma once

#include <exception>
#include <sstream>
#include <string>

#include "state.h"

namespace glm5::emulator {

struct Report {
  std::string check;   // which check spoke: bounds, alignment, uninitialised, race, mbarrier, deadlock, ...
  std::string kernel;  // demangled
  std::string file;
  u32 line = 0, ptx_line = 0;
  std::string callers;  // a line for each call that was inlined, innermost first
  std::string instruction;
  u32 block[3] = {};
  int warp = -1, lane = -1;
  std::string sentence;
  std::string text() const;
};

class Fault : public std::exception {
 public:
  explicit Fault(Report report) : report_(std::move(report)), text_(report_.text()) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const Report& report() const { return report_; }

 private:
  Report report_;
  std::string text_;
};

// The files and lines of the calls by which a line was inlined, innermost first.
std::string callers_of(const Program& program, const SourceLine& line, const char* before_each);

// The report of the warp's current instruction.
Report report_at(const Warp& warp, int lane, std::string check, std::string sentence);

// Ends the launch. `check` is a short name that tests match on.
template <class... Parts>
[[noreturn]] void fault(const Warp& warp, int lane, const char* check, const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Fault(report_at(warp, lane, check, sentence.str()));
}

struct Hex {
  u64 value;
};
std::ostream& operator<<(std::ostream& out, Hex hex);

std::string demangled(const std::string& name);

// A refusal that has no place in a kernel: a bad launch, a bad fat binary.
class Refusal : public std::exception {
 public:
  explicit Refusal(std::string sentence) : sentence_(std::move(sentence)) {}
  const char* what() const noexcept override { return sentence_.c_str(); }

 private:
  std::string sentence_;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw Refusal(sentence.str());
}

}  // namespace glm5::emulator
