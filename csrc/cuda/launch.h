// Host side of every kernel: errors as glm5::Error, what the device is, and the launch itself.
//
// Nothing here allocates device memory or synchronises, so every launch can be captured in a graph.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "core/error.h"
#include "core/types.h"

namespace glm5::cuda {

constexpr int kMaxSmemBytes = 227 * 1024;  // what one block may have on sm_90
constexpr int kMaxDevices = 64;

// A failed call becomes an Error that names the op and the place of the call.
inline void check(cudaError_t status, const char* op, const char* what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // so that the next call does not report it again
  fail({file, line}, op, ": ", what, " failed: ", cudaGetErrorString(status));
}

struct Device {
  int index;
  int sms;
};

inline int attribute_of(int device, cudaDeviceAttr attribute, const char* op) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), op, "reading a device attribute");
  return value;
}

// The current device, which must be of compute capability 9.0.
inline Device require_sm90(const char* op) {
  static std::array<std::atomic<int>, kMaxDevices> sms_of{};  // 0: not looked at yet
  int index = 0;
  check(cudaGetDevice(&index), op, "finding the current device");
  require(index < kMaxDevices, op, ": device ", index, " is beyond the ", kMaxDevices, " devices supported");
  int sms = sms_of[index].load(std::memory_order_relaxed);
  if (sms == 0) {
    const int major = attribute_of(index, cudaDevAttrComputeCapabilityMajor, op);
    const int minor = attribute_of(index, cudaDevAttrComputeCapabilityMinor, op);
    require(major == 9 && minor == 0, op, " needs a GPU of compute capability 9.0 (H100, H200, H800, H20); device ",
            index, " has ", major, ".", minor);
    sms = attribute_of(index, cudaDevAttrMultiProcessorCount, op);
    sms_of[index].store(sms, std::memory_order_relaxed);
  }
  return {index, sms};
}

struct LaunchShape {
  dim3 blocks;
  int threads;
  int smem_bytes = 0;
  int cluster = 1;  // blocks along x that form a cluster
};

// Raises the kernel's limit of dynamic shared memory, once per device.
template <auto kKernel>
void allow_smem(int smem_bytes, const Device& device, const char* op) {
  static std::array<std::atomic<int>, kMaxDevices> allowed{};
  if (allowed[device.index].load(std::memory_order_relaxed) >= smem_bytes) return;
  check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem_bytes), op,
        "asking for shared memory");
  allowed[device.index].store(smem_bytes, std::memory_order_relaxed);
}

// stream is a cudaStream_t, as torch hands it out.
template <auto kKernel, class... Args>
void launch(const char* op, const Device& device, const LaunchShape& shape, void* stream, const Args&... args) {
  if (shape.smem_bytes > 48 * 1024) allow_smem<kKernel>(shape.smem_bytes, device, op);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = shape.blocks;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.smem_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kKernel, args...), op, "the launch");
}

}  // namespace glm5::cuda
