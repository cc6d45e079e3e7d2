// The memory functions of libcudart. Any host address is a device address; what lies in the reservation is checked.
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>

#include "device.h"
#include "memory.h"
#include "report.h"
#include "status.h"

using namespace glm5;
using namespace glm5::emulator;

namespace {

// A range that the host's call touches must lie in one allocation.
void check_range(const void* pointer, u64 bytes, const char* what) {
  const u64 address = reinterpret_cast<u64>(pointer);
  Memory& memory = Memory::instance();
  if (bytes == 0 || !memory.holds(address)) return;
  const Extent* extent = memory.find(address);
  if (extent == nullptr || !extent->is_live || address + bytes > extent->end)
    refuse(what, " of ", bytes, " bytes at ", Hex{address}, " is not within a live allocation",
           extent ? " (nearest: " + extent->name + ")" : std::string());
}

void written(const void* pointer, u64 bytes) {
  const u64 address = reinterpret_cast<u64>(pointer);
  if (bytes && Memory::instance().holds(address)) std::memset(Memory::shadow(address), kInitialised, bytes);
}

// Copies carry the shadow along, so that copying what was never written is no fault and hides none.
void copy(void* to, const void* from, u64 bytes) {
  check_range(to, bytes, "cudaMemcpy to");
  check_range(from, bytes, "cudaMemcpy from");
  std::memmove(to, from, bytes);
  const u64 target = reinterpret_cast<u64>(to), source = reinterpret_cast<u64>(from);
  if (!Memory::instance().holds(target)) return;
  if (Memory::instance().holds(source)) std::memmove(Memory::shadow(target), Memory::shadow(source), bytes);
  else written(to, bytes);
}

}  // namespace

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  return guarded([&] {
    *pointer = nullptr;
    if (bytes == 0) return;
    Extent& extent =
        Memory::instance().allocate(bytes, "an allocation of " + std::to_string(bytes) + " bytes by cudaMalloc");
    Memory::instance().mark(extent.begin, bytes, kUninitialised);
    *pointer = reinterpret_cast<void*>(extent.begin);
  }, cudaErrorMemoryAllocation);
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
cudaError_t cudaFree(void* pointer) {
  return guarded([&] {
    if (pointer) Memory::instance().release(reinterpret_cast<u64>(pointer));
  });
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }
cudaError_t cudaMallocHost(void** pointer, size_t bytes) { return *pointer = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) { return cudaMallocHost(pointer, bytes); }
cudaError_t cudaFreeHost(void* pointer) { return std::free(pointer), cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
  *available = *total = size_t{141} * 1000 * 1000 * 1000;
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return guarded([&] { copy(to, from, bytes); });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                         cudaMemcpyKind) {
  return guarded([&] {
    for (size_t y = 0; y < height; ++y)
      copy(static_cast<char*>(to) + y * to_pitch, static_cast<const char*>(from) + y * from_pitch, width);
  });
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy2D(to, to_pitch, from, from_pitch, width, height, kind);
}
cudaError_t cudaMemset(void* pointer, int value, size_t bytes) {
  return guarded([&] {
    check_range(pointer, bytes, "cudaMemset");
    std::memset(pointer, value, bytes);
    written(pointer, bytes);
  });
}
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(pointer, value, bytes);
}
cudaError_t cudaMemset2D(void* pointer, size_t pitch, int value, size_t width, size_t height) {
  return guarded([&] {
    if (height > 1 && pitch < width) refuse("cudaMemset2D with a pitch of ", pitch, " bytes and a width of ", width);
    for (size_t y = 0; y < height; ++y) {
      char* row = static_cast<char*>(pointer) + y * pitch;
      check_range(row, width, "cudaMemset2D");
      std::memset(row, value, width);
      written(row, width);
    }
  });
}
cudaError_t cudaMemset2DAsync(void* pointer, size_t pitch, int value, size_t width, size_t height, cudaStream_t) {
  return cudaMemset2D(pointer, pitch, value, width, height);
}

cudaError_t cudaGetSymbolAddress(void** pointer, const void* symbol) {
  return guarded([&] { *pointer = reinterpret_cast<void*>(Device::instance().variable_address(symbol, nullptr)); });
}
cudaError_t cudaGetSymbolSize(size_t* size, const void* symbol) {
  return guarded([&] {
    u64 bytes = 0;
    Device::instance().variable_address(symbol, &bytes);
    *size = bytes;
  });
}
cudaError_t cudaMemcpyToSymbol(const void* symbol, const void* from, size_t bytes, size_t offset, cudaMemcpyKind) {
  return guarded([&] {
    copy(reinterpret_cast<char*>(Device::instance().variable_address(symbol, nullptr)) + offset, from, bytes);
  });
}
cudaError_t cudaMemcpyFromSymbol(void* to, const void* symbol, size_t bytes, size_t offset, cudaMemcpyKind) {
  return guarded(
      [&] { copy(to, reinterpret_cast<char*>(Device::instance().variable_address(symbol, nullptr)) + offset, bytes); });
}

}  // extern "C"
