// What is under way in a warpgroup's wgmma pipeline.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "race_check.h"
#include "wgmma_math.h"

namespace glm5::emulator {

struct WgmmaForm;

struct WgmmaWarp {
  u32 issued = 0;                             // wgmma so far
  std::deque<u32> commits;                    // `issued` at each commit that has not been waited for
  bool is_fenced = false;                     // by wgmma.fence, since the last wait for all
  u32 waited = 0;                             // up to which the warp has waited
  std::vector<u32> issued_by_form;            // the latest of each WgmmaForm::index
  std::unordered_map<u32, u32> copied;        // register -> the wgmma whose accumulator mov has brought there
  std::unordered_map<u32, u32> places;        // wgmma -> pc, of those under way
  std::unordered_map<u32, u64> accumulators;  // first register of D -> hash of D after the last wgmma since then
};

// One wgmma of the warpgroup, from its first warp's issue to the first warp that knows it is complete.
struct WgmmaInFlight {
  const WgmmaForm* form = nullptr;
  u64 a = 0, b = 0;  // descriptors
  u32 warps = 0;     // mask of those that have issued it
  u64 b_hash = 0, a_hash[4] = {};
  u32 pc = 0;
  std::vector<Epoch> a_writers, b_writers;
  Clocks views[4];  // of each warp at its issue
};

struct Warpgroup {
  u32 first = 1;  // number of in_flight.front()
  std::deque<WgmmaInFlight> in_flight;
  u32 completed = 0;      // wgmma known to be complete
  Clocks completed_view;  // what their warps had done before issuing them
  u32 issued[4] = {};
};

}  // namespace glm5::emulator
