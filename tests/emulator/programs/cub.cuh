// CUB's device-wide algorithms as C functions over arrays in emulated memory.
#pragma once

#include <cub/cub.cuh>

namespace program {

// algorithm(temporary storage, its size): called once for the size and once with storage, as CUB wants it. A status.
template <class Algorithm>
int run(Algorithm algorithm) {
  size_t bytes = 0;
  if (const auto status = algorithm(nullptr, bytes); status != cudaSuccess) return status;
  void* storage = nullptr;
  if (const auto status = cudaMalloc(&storage, bytes); status != cudaSuccess) return status;
  const auto status = algorithm(storage, bytes);
  const auto after = cudaDeviceSynchronize();
  cudaFree(storage);
  return status != cudaSuccess ? status : after;
}

}  // namespace program
