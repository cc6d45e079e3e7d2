// The emulated device: registered modules, kernels by their host stubs, launches, and what the last one had to say.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "debug.h"
#include "ptx_parser.h"
#include "state.h"

namespace glm5::emulator {

struct LaunchRequest {
  u32 blocks[3] = {1, 1, 1}, threads[3] = {1, 1, 1}, cluster[3] = {1, 1, 1};
  u64 dynamic_shared_bytes = 0;
  void** arguments = nullptr;
};

struct Options {
  Schedule schedule = Schedule::fair;
  u64 seed = 0;
  u32 threads = 0;  // of the host that run clusters; 0: as many as the process may use
  Watch watch;      // in force where it has a listener
  u64 instruction_limit = u64{2} * 1000 * 1000 * 1000;  // warp instructions of one launch
};

struct Image;

struct Kernel {
  Image* image = nullptr;
  std::string name;                 // mangled
  std::unique_ptr<Program> program;  // decoded at the first launch
  u64 dynamic_shared_limit = 48 * 1024;
  bool allows_large_clusters = false;
  u64 launches = 0;
};

// One fat binary.
struct Image {
  const void* wrapper = nullptr;
  std::unique_ptr<Module> module;   // parsed at the first use
  std::map<const void*, std::string> variables;  // host shadow -> device name
};

class Device {
 public:
  static Device& instance();

  Image* add_image(const void* wrapper);
  void add_kernel(Image* image, const void* stub, const char* name);
  void add_variable(Image* image, const void* host, const char* name);
  const void* add_ptx(std::string text);      // PTX as text; what stub_named takes as its module
  // The stub of a kernel by its name, in a module of add_ptx or (null) in any; null where there is none.
  const void* stub_named(const void* module, const std::string& name);
  Kernel& kernel(const void* stub);           // throws Refusal for an unknown stub
  Program& program(Kernel& kernel);           // decodes it
  u64 variable_address(const void* host, u64* bytes);
  void launch(const void* stub, const LaunchRequest& request);

  Options options;
  std::recursive_mutex mutex;
  // From here on launches are counted, or no longer. Their numbers, which schedules depend on, begin anew.
  void count(bool begins);
  std::string counts() const { return "[" + counts_ + "]"; }  // a JSON object for each launch that was counted

 private:
  Module& module(Image& image);
  bool is_counting_ = false;
  std::string counts_;
  std::vector<std::unique_ptr<Image>> images_;
  std::map<const void*, std::unique_ptr<Kernel>> kernels_;
};

}  // namespace glm5::emulator
