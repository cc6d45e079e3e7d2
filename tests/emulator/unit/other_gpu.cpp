// A machine with a GPU of compute capability 8.6: what every launcher asks first answers with a sentence.
#include <cstdio>

#include "cuda/launch.h"

extern "C" {
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 6;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return ""; }
}

int main() {
  try {
    glm5::cuda::require_sm90("gemm");
  } catch (const glm5::Error& error) {
    std::puts(error.what());
  }
}
