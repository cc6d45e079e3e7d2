#include "counts.h"

#include <algorithm>
#include <map>
#include <sstream>
#include <vector>

#include "report.h"

namespace glm5::emulator {
namespace {

constexpr const char* kClassNames[] = {"integer", "floating", "conversion", "move", "memory",
                                       "control", "synchronisation", "copy", "matrix"};

std::vector<std::string_view> words_of(std::string_view text) {
  if (text.starts_with('@')) text.remove_prefix(std::min(text.size(), text.find_first_of(" \t")));
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(" \t")));
  text = text.substr(0, text.find_first_of(" \t"));
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t dot = std::min(text.find('.'), text.size());
    words.push_back(text.substr(0, dot));
    text.remove_prefix(std::min(dot + 1, text.size()));
  }
  return words;
}

// m64n128k16 -> 64 * 128 * 16; 0 for any other word.
u64 multiply_adds_of(std::string_view shape) {
  u64 product = 1;
  for (const char letter : {'m', 'n', 'k'}) {
    if (!shape.starts_with(letter)) return 0;
    shape.remove_prefix(1);
    u64 value = 0;
    while (!shape.empty() && shape[0] >= '0' && shape[0] <= '9') {
      value = value * 10 + static_cast<u64>(shape[0] - '0');
      shape.remove_prefix(1);
    }
    product *= value;
  }
  return shape.empty() ? product : 0;
}

// "wgmma e4m3 x e4m3" -> multiply-adds.
void count_matrix(std::map<std::string, u64>& found, const Place& place, u64 warps) {
  const auto words = words_of(place.text);
  const auto shape = std::find_if(words.begin(), words.end(), multiply_adds_of);
  if (shape == words.end()) return;
  const bool is_wgmma = words[0] == "wgmma";
  // wgmma: the shape, D, A, B. mma: the shape and more, D, A, B, C.
  const auto types = is_wgmma ? shape + 2 : words.end() - 3;
  if (types <= shape || types + 1 >= words.end()) return;
  const std::string name = std::string(words[0]) + " " + std::string(types[0]) + " x " + std::string(types[1]);
  found[name] += warps * multiply_adds_of(*shape) / (is_wgmma ? 4 : 1);
}

void put_three(std::ostream& out, const char* name, const u32* values) {
  out << '"' << name << "\":[" << values[0] << ',' << values[1] << ',' << values[2] << "],";
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + '"';
}

void put_instructions(std::ostream& out, const Program& program) {
  Hits by_class[std::size(kClassNames)];
  std::map<std::string, u64> matrix;
  u64 fused = 0;
  for (size_t i = 0; i < program.code.size(); ++i) {
    const Hits& hits = program.hits[i];
    if (hits.warps == 0) continue;
    by_class[static_cast<size_t>(program.code[i].kind)] += hits;
    if (program.code[i].kind == Class::matrix) count_matrix(matrix, program.places[i], hits.warps);
    if (program.code[i].kind == Class::floating && words_of(program.places[i].text)[0] == "fma") fused += hits.lanes;
  }
  out << "\"instructions\":{";
  const char* comma = "";
  for (size_t c = 0; c < std::size(kClassNames); ++c) {
    if (by_class[c].warps == 0) continue;
    out << comma << '"' << kClassNames[c] << "\":{\"warps\":" << by_class[c].warps
        << ",\"lanes\":" << by_class[c].lanes << '}';
    comma = ",";
  }
  out << "},\"multiply_adds\":{";
  if (fused) matrix["fma"] = fused;
  comma = "";
  for (const auto& [name, count] : matrix) {
    out << comma << quoted(name) << ':' << count;
    comma = ",";
  }
  out << "},";
}

}  // namespace

std::string counts_of_launch(const Grid& grid, const Traffic& traffic) {
  std::ostringstream out;
  out << "{\"kernel\":" << quoted(demangled(grid.program->kernel)) << ',';
  put_three(out, "blocks", grid.blocks);
  put_three(out, "threads", grid.threads);
  put_three(out, "cluster", grid.cluster_shape);
  out << "\"shared_bytes\":" << grid.program->static_shared_bytes + grid.dynamic_shared_bytes << ',';
  put_instructions(out, *grid.program);
  out << "\"delivered_bytes\":" << traffic.delivered << ",\"memory\":{";
  const char* comma = "";
  for (size_t i = 0; i < traffic.paths.size(); ++i) {
    const PathCounts& counts = traffic.paths[i];
    if (counts.requests == 0) continue;
    out << comma << quoted(name_of(static_cast<Path>(i))) << ":{\"requests\":" << counts.requests
        << ",\"bytes\":" << counts.bytes << ",\"taken\":" << counts.taken << ",\"ideal\":" << counts.ideal << '}';
    comma = ",";
  }
  out << "}}";
  return out.str();
}

}  // namespace glm5::emulator
