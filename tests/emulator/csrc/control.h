// Calls: what an instruction of a call site knows, and what a return does with it.
#pragma once

#include <vector>

#include "decoder.h"
#include "state.h"

namespace glm5::emulator {

// A .param variable that is copied between the caller's area and the callee's.
struct AreaCopy {
  u32 from, to;                     // register-region offsets
  u32 from_lane_bytes, to_lane_bytes, bytes;
};

struct CallSite {
  FunctionImage* callee = nullptr;  // null: an external
  std::vector<AreaCopy> arguments, results;
  std::vector<PlaceOfVariable> external_arguments;
  PlaceOfVariable external_result;
};

// vprintf and __assertfail.
Step run_vprintf(Warp& warp, const CallSite& site, u32 mask);
Step run_assertfail(Warp& warp, const CallSite& site, u32 mask);

}  // namespace glm5::emulator
