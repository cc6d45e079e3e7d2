#include "driver_api.h"

#include <cuda.h>

#include <cstring>

#include "memory.h"
#include "status.h"
#include "tensor_map.h"

using namespace glm5;
using namespace glm5::emulator;

extern "C" {

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* dimensions, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  const TensorMapRequest request{
      .element = static_cast<int>(type), .rank = static_cast<int>(rank), .interleave = static_cast<int>(interleave),
      .swizzle = static_cast<int>(swizzle), .fill = static_cast<int>(fill), .map = reinterpret_cast<u64>(map),
      .address = reinterpret_cast<u64>(address), .dimensions = reinterpret_cast<const u64*>(dimensions),
      .strides = reinterpret_cast<const u64*>(strides), .box = box, .steps = steps};
  TensorMap encoded{};
  const std::string broken = encode_tensor_map(request, encoded);
  if (!broken.empty()) {
    remember(cudaErrorInvalidValue, broken);
    return CUDA_ERROR_INVALID_VALUE;
  }
  *map = {};
  std::memcpy(static_cast<void*>(map), &encoded, sizeof encoded);
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult code, const char** text) {
  *text = code == CUDA_SUCCESS ? "no error" : last_sentence().c_str();
  return CUDA_SUCCESS;
}
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

}  // extern "C"

namespace glm5::emulator {

void* driver_function(const char* name) {
  struct Named {
    const char* name;
    void* function;
  };
  const Named known[] = {
      {"cuTensorMapEncodeTiled", reinterpret_cast<void*>(&cuTensorMapEncodeTiled)},
      {"cuGetErrorString", reinterpret_cast<void*>(&cuGetErrorString)},
      {"cuInit", reinterpret_cast<void*>(&cuInit)},
      {"cuDriverGetVersion", reinterpret_cast<void*>(&cuDriverGetVersion)},
  };
  for (const Named& function : known)
    if (std::strcmp(function.name, name) == 0) return function.function;
  return nullptr;
}

}  // namespace glm5::emulator
