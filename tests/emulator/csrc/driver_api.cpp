#include "driver_api.h"

#include <cuda.h>

#include <cstring>

#include "status.h"

using namespace glm5::emulator;

extern "C" {

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
