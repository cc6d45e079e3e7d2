// Prefix sums, selection and reduction over the whole device: decoupled look-back between blocks.
#include "cub.cuh"

extern "C" int inclusive_sum(const long long* values, long long* sums, int count) {
  return program::run(
      [&](void* storage, size_t& bytes) { return cub::DeviceScan::InclusiveSum(storage, bytes, values, sums, count); });
}

extern "C" int select_flagged(const int* values, const unsigned char* flags, int* chosen, int* chosen_count,
                              int count) {
  return program::run([&](void* storage, size_t& bytes) {
    return cub::DeviceSelect::Flagged(storage, bytes, values, flags, chosen, chosen_count, count);
  });
}

extern "C" int sum(const float* values, float* total, int count) {
  return program::run(
      [&](void* storage, size_t& bytes) { return cub::DeviceReduce::Sum(storage, bytes, values, total, count); });
}
