// Watching one warp: a listener is called around each of its instructions, or around those of chosen source lines.
//
// Nothing of this is in the loop that runs other warps, and watching changes no schedule.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "state.h"

namespace glm5::emulator {

// What the listener sees. The layouts are those of tests/emulator/debugging.py.
struct StopRegister {
  const char* name = nullptr;  // not terminated
  u64 name_bytes = 0;
  const char* type = nullptr;
  const void* lanes = nullptr;  // 32 values, or a predicate's mask
  u32 bytes = 0;                // of a value; 0: a predicate
  u32 is_written = 0;
};

enum class StopKind : u32 { before, after, blocked, failed };

struct Stop {
  const char* kernel = nullptr;
  const char* file = nullptr;
  const char* callers = nullptr;
  const char* text = nullptr;  // not terminated
  u64 text_bytes = 0;
  const StopRegister* registers = nullptr;
  const u8* shared = nullptr;  // host address of the cluster's shared address 0
  const u8* shadow = nullptr;  // and of its shadow bytes
  u32 register_count = 0, mask = 0, line = 0, ptx_line = 0;
  u32 block[3] = {}, warp = 0;
  u32 shared_begin = 0, shared_end = 0;  // shared addresses of the block's own memory
  StopKind kind = StopKind::before;
  u32 arrives = 0;  // the warp was not on this line at its last instruction
};
using Listener = void (*)(const Stop*);

struct Watch {
  std::string kernel;  // part of its name
  u32 block[3] = {};
  int warp = 0;
  std::vector<std::pair<std::string, u32>> lines;  // end of a file's name, line; none: every instruction
  Listener listener = nullptr;
};

constexpr u32 kNowhere = ~u32{0};

struct WatchedWarp {
  const Watch* watch = nullptr;
  u32 previous_pc = kNowhere;  // of the last instruction that was executed
  u32 waits_at = kNowhere;     // of the one that blocked, until it is executed
};

// Makes a new warp a watched one, if it is the one that `watch` (null: none) is for.
void watch_if_wanted(Warp& warp, const Watch* watch);

// Executes the current instruction of the warp's running group, and tells the listener.
Step execute_watched(Warp& warp, const Instruction& in, u32 mask);

}  // namespace glm5::emulator
