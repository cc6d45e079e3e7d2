// One launch in figures: instructions by class, matrix arithmetic by type, and what moved through memory. Counts only;
// nothing here is a time.
#pragma once

#include <string>

#include "state.h"
#include "traffic.h"

namespace glm5::emulator {

// A JSON object.
std::string counts_of_launch(const Grid& grid, const Traffic& traffic);

}  // namespace glm5::emulator
