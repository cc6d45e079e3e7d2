#include "report.h"

#include <cxxabi.h>

#include <cstdlib>
#include <iomanip>

namespace glm5::emulator {

std::string demangled(const std::string& name) {
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 && text ? text : name;
  std::free(text);
  // Without the return type and the parameters, which may hold parentheses of their own.
  if (result.ends_with(')')) {
    int depth = 0;
    for (size_t at = result.size(); at-- > 0;) {
      depth += result[at] == ')' ? 1 : result[at] == '(' ? -1 : 0;
      if (depth != 0) continue;
      result.resize(at);
      break;
    }
  }
  if (result.starts_with("void ")) result.erase(0, 5);
  return result;
}

std::ostream& operator<<(std::ostream& out, Hex hex) {
  const auto flags = out.flags();
  out << "0x" << std::hex << hex.value;
  out.flags(flags);
  return out;
}

std::string callers_of(const Program& program, const SourceLine& line, const char* before_each) {
  std::ostringstream out;
  for (u32 at = line.caller; at != 0; at = program.callers[at].caller)
    out << before_each << program.file_of(program.callers[at]) << ":" << program.callers[at].line;
  return out.str();
}

std::string Report::text() const {
  std::ostringstream out;
  out << "[" << check << "] " << sentence;
  if (kernel.empty()) return out.str();
  out << "\n  in kernel " << kernel;
  if (warp >= 0) {
    out << ", block (" << block[0] << ", " << block[1] << ", " << block[2] << "), warp " << warp;
    if (lane >= 0) out << ", lane " << lane << " (thread " << warp * kLanes + lane << ")";
  }
  if (!file.empty()) out << "\n  at " << file << ":" << line;
  out << callers;
  if (!instruction.empty()) out << "\n  instruction `" << instruction << "` (PTX line " << ptx_line << ")";
  return out.str();
}

Report report_at(const Warp& warp, int lane, std::string check, std::string sentence) {
  Report report;
  report.check = std::move(check);
  report.sentence = std::move(sentence);
  report.kernel = demangled(warp.program->kernel);
  report.warp = warp.index;
  report.lane = lane;
  for (int d = 0; d < 3; ++d) report.block[d] = warp.cta->id[d];
  if (warp.group != nullptr && warp.group->pc < warp.program->places.size()) {
    const Place& place = warp.program->places[warp.group->pc];
    report.ptx_line = place.ptx_line;
    report.line = place.source.line;
    report.file = warp.program->file_of(place.source);
    report.callers = callers_of(*warp.program, place.source, "\n  called from ");
    report.instruction = std::string(place.text);
  }
  return report;
}

}  // namespace glm5::emulator
