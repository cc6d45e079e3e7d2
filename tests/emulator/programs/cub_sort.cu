// Radix sort, device-wide and in one block.
#include "cub.cuh"

namespace {

template <int kThreads, int kItems>
__global__ void sort_block(float* keys) {
  using Load = cub::BlockLoad<float, kThreads, kItems, cub::BLOCK_LOAD_WARP_TRANSPOSE>;
  using Sort = cub::BlockRadixSort<float, kThreads, kItems>;
  using Store = cub::BlockStore<float, kThreads, kItems, cub::BLOCK_STORE_TRANSPOSE>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Sort::TempStorage sort;
    typename Store::TempStorage store;
  } shared;
  float* mine = keys + blockIdx.x * kThreads * kItems;
  float values[kItems];
  Load(shared.load).Load(mine, values);
  __syncthreads();
  Sort(shared.sort).Sort(values);
  __syncthreads();
  Store(shared.store).Store(mine, values);
}

}  // namespace

extern "C" int sort_pairs(const unsigned* keys, unsigned* sorted, const int* values, int* carried, int count) {
  return program::run([&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, keys, sorted, values, carried, count);
  });
}

extern "C" int sort_blocks(float* keys, int blocks) {
  sort_block<128, 7><<<blocks, 128>>>(keys);
  return cudaGetLastError();
}
