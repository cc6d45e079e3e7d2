// What the Python side of the tests calls through ctypes.
#include <cstring>
#include <sstream>
#include <string>

#include "decoder.h"
#include "device.h"
#include "memory.h"
#include "report.h"
#include "status.h"

using namespace glm5;
using namespace glm5::emulator;

namespace {
thread_local std::string answer;
}

extern "C" {

// 0 on failure; glm5_emulator_sentence() says why. The contents are zero and count as initialised.
u64 glm5_emulator_allocate(u64 bytes, u64 address_modulo, const char* name) {
  u64 address = 0;
  guarded([&] { address = Memory::instance().allocate(bytes, name, address_modulo).begin; });
  return address;
}
int glm5_emulator_free(u64 address) {
  return guarded([&] { Memory::instance().release(address); });
}
// value: 0 initialised, 1 uninitialised, 2 outside.
int glm5_emulator_mark(u64 address, u64 bytes, int value) {
  return guarded([&] { Memory::instance().mark(address, bytes, static_cast<Shadow>(value)); });
}
// How many of the bytes were never written.
u64 glm5_emulator_unwritten(u64 address, u64 bytes) {
  u64 count = 0;
  for (u64 i = 0; i < bytes; ++i) count += *Memory::shadow(address + i) == kUninitialised;
  return count;
}
// threads: that may run clusters; 0: as many as the process may use.
void glm5_emulator_configure(int schedule, u64 seed, u64 instruction_limit, int allows_host_pointers, u32 threads) {
  Options& options = Device::instance().options;
  options.schedule = static_cast<Schedule>(schedule);
  options.seed = seed;
  options.instruction_limit = instruction_limit;
  options.threads = threads;
  Memory::instance().allows_host_pointers = allows_host_pointers != 0;
}
// Calls `listener` around the instructions of one warp; null ends it. lines: "file:line" for those alone, one in each
// row.
void glm5_emulator_watch(Listener listener, const char* kernel, const u32* block, int warp, const char* lines) {
  Watch& watch = Device::instance().options.watch;
  watch = {.kernel = kernel, .block = {block[0], block[1], block[2]}, .warp = warp, .listener = listener};
  std::istringstream rows(lines);
  for (std::string row; std::getline(rows, row);) {
    const size_t colon = row.rfind(':');
    watch.lines.emplace_back(row.substr(0, colon), static_cast<u32>(std::stoul(row.substr(colon + 1))));
  }
}
// PTX as text; 0 on failure.
u64 glm5_emulator_load_ptx(const char* text) {
  const void* module = nullptr;
  guarded([&] { module = Device::instance().add_ptx(text); });
  return reinterpret_cast<u64>(module);
}
// shape: blocks, threads and cluster, three numbers each. module: of load_ptx, or 0 for any registered program.
int glm5_emulator_launch(u64 module, const char* name, const u32* shape, u64 shared_bytes, void** arguments) {
  return guarded([&] {
    const void* stub = Device::instance().stub_named(reinterpret_cast<const void*>(module), name);
    if (stub == nullptr) refuse("no program has a kernel ", name);
    LaunchRequest request;
    for (int d = 0; d < 3; ++d) {
      request.blocks[d] = shape[d];
      request.threads[d] = shape[3 + d];
      request.cluster[d] = shape[6 + d];
    }
    request.dynamic_shared_bytes = shared_bytes;
    request.arguments = arguments;
    Device::instance().kernel(stub).dynamic_shared_limit = 227 * 1024;
    Device::instance().launch(stub, request);
  }, cudaErrorInvalidConfiguration);
}
// The text of the last fault or refusal on this thread, and the short name of the check that spoke.
const char* glm5_emulator_sentence() { return last_sentence().c_str(); }
const char* glm5_emulator_check() { return last_check().c_str(); }
void glm5_emulator_count(int begins) { Device::instance().count(begins != 0); }
const char* glm5_emulator_counts() { return (answer = Device::instance().counts()).c_str(); }
// A line per entry of the instruction tables: mnemonic, section of the PTX ISA.
const char* glm5_emulator_instructions() {
  answer.clear();
  for (const Entry* entry : all_entries())
    answer.append(entry->mnemonic).append("\t").append(entry->section).append("\n");
  return answer.c_str();
}
u64 glm5_emulator_live_allocations() { return Memory::instance().live_allocations(); }

}  // extern "C"
