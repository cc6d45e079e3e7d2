#include "device.h"

#include <algorithm>
#include <cstring>

#include "counts.h"
#include "decoder.h"
#include "fatbin.h"
#include "memory.h"
#include "report.h"
#include "scheduler.h"

namespace glm5::emulator {
namespace {

// The limits of an H200 (compute capability 9.0).
constexpr u32 kMaxThreads = 1024, kMaxCluster = 8, kMaxLargeCluster = 16, kMaxBlocksX = 0x7fffffff,
              kMaxBlocksYz = 65535;

void check_limits(const Kernel& kernel, const Program& program, const LaunchRequest& request) {
  const std::string name = demangled(kernel.name);
  const u64 threads = u64{request.threads[0]} * request.threads[1] * request.threads[2];
  if (threads == 0 || threads > kMaxThreads || request.threads[2] > 64)
    refuse("launch of ", name, " with ", threads, " threads per block; 1 to ", kMaxThreads, " are possible");
  if (threads > program.max_threads)
    refuse("launch of ", name, " with ", threads, " threads; it was compiled for at most ", program.max_threads);
  u64 cluster = 1;
  for (int d = 0; d < 3; ++d) {
    const u32 blocks = request.blocks[d], limit = d == 0 ? kMaxBlocksX : kMaxBlocksYz;
    if (blocks == 0 || blocks > limit)
      refuse("launch of ", name, " with ", blocks, " blocks along ", "xyz"[d], "; 1 to ", limit);
    if (request.cluster[d] == 0 || blocks % request.cluster[d] != 0)
      refuse("launch of ", name, ": ", blocks, " blocks along ", "xyz"[d], " are no multiple of the cluster's ",
             request.cluster[d]);
    if (program.required_cluster[d] && program.required_cluster[d] != request.cluster[d])
      refuse("launch of ", name, " with a cluster of another shape than it was compiled for");
    cluster *= request.cluster[d];
  }
  if (cluster > kMaxLargeCluster || (cluster > kMaxCluster && !kernel.allows_large_clusters))
    refuse("launch of ", name, " with clusters of ", cluster, " blocks; at most ", kMaxCluster,
           " without the attribute for more");
  if (request.dynamic_shared_bytes > kernel.dynamic_shared_limit)
    refuse("launch of ", name, " with ", request.dynamic_shared_bytes, " bytes of dynamic shared memory; its limit is ",
           kernel.dynamic_shared_limit, " (cudaFuncAttributeMaxDynamicSharedMemorySize)");
  if (request.dynamic_shared_bytes + program.static_shared_bytes > kSharedPerBlock)
    refuse("launch of ", name, " with ", request.dynamic_shared_bytes + program.static_shared_bytes,
           " bytes of shared memory; a block has at most ", kSharedPerBlock);
}

}  // namespace

Device& Device::instance() {
  static Device* device = new Device;  // static constructors of programs register before anything else is ready
  return *device;
}

Image* Device::add_image(const void* wrapper) {
  const std::lock_guard lock(mutex);
  images_.push_back(std::make_unique<Image>());
  images_.back()->wrapper = wrapper;
  return images_.back().get();
}

void Device::add_kernel(Image* image, const void* stub, const char* name) {
  const std::lock_guard lock(mutex);
  auto kernel = std::make_unique<Kernel>();
  kernel->image = image;
  kernel->name = name;
  kernels_[stub] = std::move(kernel);
}

void Device::add_variable(Image* image, const void* host, const char* name) { image->variables[host] = name; }

const void* Device::add_ptx(std::string text) {
  const std::lock_guard lock(mutex);
  auto parsed = parse_module(std::move(text));
  if (parsed->target.empty()) refuse("this is no PTX: it has no .target");
  if (parsed->target != "sm_90a" && parsed->target != "sm_90")
    refuse("the PTX is for ", parsed->target, "; the emulator executes sm_90a");
  Image* image = add_image(nullptr);
  image->module = std::move(parsed);
  // The address of its name in the text serves as a kernel's stub.
  for (const auto& [name, function] : image->module->functions)
    if (function.is_entry) add_kernel(image, name.data(), std::string(name).c_str());
  return image;
}

const void* Device::stub_named(const void* module, const std::string& name) {
  for (const auto& [stub, kernel] : kernels_)
    if (kernel->name == name && (module == nullptr || kernel->image == module)) return stub;
  return nullptr;
}

Kernel& Device::kernel(const void* stub) {
  const auto it = kernels_.find(stub);
  if (it == kernels_.end()) refuse("launch of a function that is no registered kernel");
  return *it->second;
}

Module& Device::module(Image& image) {
  if (!image.module) image.module = parse_module(ptx_of_fatbin(image.wrapper));
  return *image.module;
}

Program& Device::program(Kernel& kernel) {
  if (kernel.program) return *kernel.program;
  auto program = std::make_unique<Program>();
  Linker(module(*kernel.image), *program).link(kernel.name);
  kernel.program = std::move(program);
  return *kernel.program;
}

u64 Device::variable_address(const void* host, u64* bytes) {
  for (const auto& image : images_) {
    const auto it = image->variables.find(host);
    if (it == image->variables.end()) continue;
    Module& parsed = module(*image);
    const auto variable = parsed.variables.find(it->second);
    if (variable == parsed.variables.end()) refuse("the module has no variable ", it->second);
    if (bytes) *bytes = variable->second.bytes;
    return global_address(parsed, variable->second);
  }
  refuse("this is no registered device variable");
}

void Device::launch(const void* stub, const LaunchRequest& request) {
  const std::lock_guard lock(mutex);
  Kernel& target = kernel(stub);
  Program& code = program(target);
  check_limits(target, code, request);
  // 128-byte aligned, as tensor maps among the parameters need it.
  Extent& block = Memory::instance().allocate(std::max<u32>(code.parameter_bytes, 1),
                                              "the parameters of " + demangled(target.name));
  auto* bytes = reinterpret_cast<u8*>(block.begin);
  for (size_t i = 0; i < code.parameters.size(); ++i)
    std::memcpy(bytes + code.parameters[i].offset, request.arguments[i], code.parameters[i].bytes);
  block.is_constant = true;
  Grid grid;
  grid.program = &code;
  std::copy_n(request.blocks, 3, grid.blocks);
  std::copy_n(request.threads, 3, grid.threads);
  std::copy_n(request.cluster, 3, grid.cluster_shape);
  grid.dynamic_shared_bytes = static_cast<u32>(request.dynamic_shared_bytes);
  grid.parameters = bytes;
  grid.schedule = options.schedule;
  grid.seed = options.seed + 0x9e3779b97f4a7c15 * ++target.launches;
  grid.instruction_limit = options.instruction_limit;
  // A listener is called on the thread that launches.
  grid.threads_of_host = options.watch.listener ? 1 : options.threads;
  grid.watch = options.watch.listener ? &options.watch : nullptr;
  Traffic traffic;
  if (is_counting_) {
    grid.traffic = &traffic;
    std::fill(code.hits.begin(), code.hits.end(), Hits{});
  }
  const u64 parameters = block.begin;
  try {
    run_grid(grid);
  } catch (...) {
    Memory::instance().release(parameters);
    throw;
  }
  Memory::instance().release(parameters);
  if (is_counting_) counts_ += (counts_.empty() ? "" : ",") + counts_of_launch(grid, traffic);
}

void Device::count(bool begins) {
  const std::lock_guard lock(mutex);
  is_counting_ = begins;
  counts_.clear();
  for (auto& [stub, kernel] : kernels_) kernel->launches = 0;
}

}  // namespace glm5::emulator
