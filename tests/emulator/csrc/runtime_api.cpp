// libcudart as far as programs use it: registration, launches, what the device is, errors. Memory is in
// runtime_memory.cpp.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "device.h"
#include "driver_api.h"
#include "report.h"
#include "status.h"

using namespace glm5;
using namespace glm5::emulator;

namespace {

constexpr int kMultiprocessors = 132, kClockKhz = 1980000, kMemoryClockKhz = 3201000, kBusWidth = 6144;
constexpr size_t kDeviceBytes = size_t{141} * 1000 * 1000 * 1000;
constexpr size_t kL2Bytes = size_t{60} * 1024 * 1024;

struct Configuration {
  dim3 blocks, threads;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

void copy_dim(u32 (&to)[3], dim3 from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
}

cudaError_t launch(const void* stub, dim3 blocks, dim3 threads, void** arguments, size_t shared_bytes,
                   dim3 cluster = dim3(1, 1, 1)) {
  LaunchRequest request;
  copy_dim(request.blocks, blocks);
  copy_dim(request.threads, threads);
  copy_dim(request.cluster, cluster);
  request.dynamic_shared_bytes = shared_bytes;
  request.arguments = arguments;
  return guarded([&] { Device::instance().launch(stub, request); }, cudaErrorInvalidConfiguration);
}

// What an H200 answers. Zero for attributes that nobody needs here.
int attribute_value(cudaDeviceAttr attribute) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: case cudaDevAttrMaxBlockDimX: case cudaDevAttrMaxBlockDimY: return 1024;
    case cudaDevAttrMaxBlockDimZ: return 64;
    case cudaDevAttrMaxGridDimX: return 0x7fffffff;
    case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: return 65535;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 48 * 1024;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 227 * 1024;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 228 * 1024;
    case cudaDevAttrReservedSharedMemoryPerBlock: return 1024;
    case cudaDevAttrTotalConstantMemory: return 65536;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
    case cudaDevAttrClockRate: return kClockKhz;
    case cudaDevAttrMemoryClockRate: return kMemoryClockKhz;
    case cudaDevAttrGlobalMemoryBusWidth: return kBusWidth;
    case cudaDevAttrL2CacheSize: return static_cast<int>(kL2Bytes);
    case cudaDevAttrMultiProcessorCount: return kMultiprocessors;
    case cudaDevAttrMaxThreadsPerMultiProcessor: return 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor: return 32;
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrComputeCapabilityMinor: return 0;
    case cudaDevAttrUnifiedAddressing: case cudaDevAttrConcurrentKernels: case cudaDevAttrCooperativeLaunch:
    case cudaDevAttrMemoryPoolsSupported: case cudaDevAttrEccEnabled: return 1;
    default: return 0;
  }
}

}  // namespace

extern "C" {

// ---- registration and launch: what nvcc's host code calls

void** __cudaRegisterFatBinary(void* wrapper) {
  return reinterpret_cast<void**>(Device::instance().add_image(wrapper));
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** image, const char* stub, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  Device::instance().add_kernel(reinterpret_cast<Image*>(image), stub, name);
}
void __cudaRegisterVar(void** image, char* host, char*, const char* name, int, size_t, int, int) {
  Device::instance().add_variable(reinterpret_cast<Image*>(image), host, name);
}
void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {}

unsigned __cudaPushCallConfiguration(dim3 blocks, dim3 threads, size_t shared_bytes, cudaStream_t stream) {
  configurations.push_back({blocks, threads, shared_bytes, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* blocks, dim3* threads, size_t* shared_bytes, void* stream) {
  if (configurations.empty()) return remember(cudaErrorMissingConfiguration, "a launch without a configuration");
  const Configuration top = configurations.back();
  configurations.pop_back();
  *blocks = top.blocks;
  *threads = top.threads;
  *shared_bytes = top.shared_bytes;
  std::memcpy(stream, &top.stream, sizeof top.stream);
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* stub) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(stub));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments, size_t shared_bytes,
                               cudaStream_t) {
  return launch(kernel, blocks, threads, arguments, shared_bytes);
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments,
                                    size_t shared_bytes, cudaStream_t) {
  return launch(kernel, blocks, threads, arguments, shared_bytes);
}
cudaError_t cudaLaunchKernel(const void* stub, dim3 blocks, dim3 threads, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  return launch(stub, blocks, threads, arguments, shared_bytes);
}
cudaError_t cudaLaunchCooperativeKernel(const void* stub, dim3 blocks, dim3 threads, void** arguments,
                                        size_t shared_bytes, cudaStream_t) {
  return launch(stub, blocks, threads, arguments, shared_bytes);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* stub, void** arguments) {
  dim3 cluster(1, 1, 1);
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config->attrs[i];
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    cluster = dim3(attribute.val.clusterDim.x, attribute.val.clusterDim.y, attribute.val.clusterDim.z);
  }
  return launch(stub, config->gridDim, config->blockDim, arguments, config->dynamicSmemBytes, cluster);
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  return guarded([&] {
    Kernel& kernel = Device::instance().kernel(stub);
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
      const u64 fixed = Device::instance().program(kernel).static_shared_bytes;
      if (value < 0 || fixed + static_cast<u64>(value) > 227 * 1024)
        refuse(demangled(kernel.name), " asks for ", value, " bytes of dynamic shared memory beside ", fixed,
               " static ones; a block has at most ", 227 * 1024);
      kernel.dynamic_shared_limit = static_cast<u64>(value);
    } else if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
      kernel.allows_large_clusters = value != 0;
    }
  });
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* stub) {
  return guarded([&] {
    Kernel& kernel = Device::instance().kernel(stub);
    const Program& program = Device::instance().program(kernel);
    *attributes = {};
    attributes->sharedSizeBytes = program.static_shared_bytes;
    attributes->localSizeBytes = program.local_bytes;
    attributes->maxThreadsPerBlock = static_cast<int>(program.max_threads);
    attributes->numRegs = static_cast<int>(program.max_registers);
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(kernel.dynamic_shared_limit);
    attributes->ptxVersion = attributes->binaryVersion = 90;
  });
}
cudaError_t cudaFuncSetCacheConfig(const void*, cudaFuncCache) { return cudaSuccess; }

// How many blocks fit on a multiprocessor, by shared memory and threads alone: registers are not known from PTX.
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub, int threads,
                                                                   size_t shared_bytes, unsigned) {
  return guarded([&] {
    const Program& program = Device::instance().program(Device::instance().kernel(stub));
    const size_t per_block = shared_bytes + program.static_shared_bytes + 1024;
    *blocks =
        static_cast<int>(std::min<size_t>(228 * 1024 / per_block, 2048 / static_cast<size_t>(std::max(threads, 1))));
  });
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* stub, int threads,
                                                          size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, stub, threads, shared_bytes, 0);
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
  unsigned size = 1;
  for (unsigned i = 0; i < config->numAttrs; ++i)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension)
      size = config->attrs[i].val.clusterDim.x * config->attrs[i].val.clusterDim.y * config->attrs[i].val.clusterDim.z;
  *clusters = kMultiprocessors / static_cast<int>(size);
  return cudaSuccess;
}

// ---- the device

cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  return device == 0 ? cudaSuccess : remember(cudaErrorInvalidDevice, "the emulator has one device, number 0");
}
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return remember(cudaErrorInvalidDevice, "the emulator has one device, number 0");
  *value = attribute_value(attribute);
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "NVIDIA H200 (emulated)");
  properties->totalGlobalMem = kDeviceBytes;
  properties->sharedMemPerBlock = 48 * 1024;
  properties->sharedMemPerBlockOptin = 227 * 1024;
  properties->sharedMemPerMultiprocessor = 228 * 1024;
  properties->reservedSharedMemPerBlock = 1024;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->multiProcessorCount = kMultiprocessors;
  properties->l2CacheSize = static_cast<int>(kL2Bytes);
  properties->memoryBusWidth = kBusWidth;
  properties->major = 9;
  const int threads[] = {1024, 1024, 64}, grid[] = {0x7fffffff, 65535, 65535};
  std::copy_n(threads, 3, properties->maxThreadsDim);
  std::copy_n(grid, 3, properties->maxGridSize);
  properties->clusterLaunch = properties->cooperativeLaunch = properties->unifiedAddressing = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }

// ---- errors

const char* cudaGetErrorString(cudaError_t code) { return sentence_of(code); }
const char* cudaGetErrorName(cudaError_t code) { return code == cudaSuccess ? "cudaSuccess" : "cudaError"; }
cudaError_t cudaGetLastError() { return last_error(true); }
cudaError_t cudaPeekAtLastError() { return last_error(false); }

// ---- streams and events: everything happens at once, in order

cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = reinterpret_cast<cudaStream_t>(1), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return *event = reinterpret_cast<cudaEvent_t>(1), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
// The emulator has no time.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0, cudaSuccess;
}

// ---- the driver's functions

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *entry = driver_function(symbol);
  if (result) *result = *entry ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
#undef cudaGetDriverEntryPoint
cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** entry, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* result) {
  return cudaGetDriverEntryPointByVersion(symbol, entry, 0, flags, result);
}

}  // extern "C"
