// What the CPU doors of the cache ops ask of slots and positions before anything is written. The CUDA kernels leave out
// what lies outside; python/glm5_ops/ops/_indices.py asks the same with torch's operations.
#pragma once

#include "core/error.h"
#include "core/glm5.h"
#include "core/tensor.h"

namespace glm5 {

inline void check_cache_slots(const char* op, const Tensor<const i64, 1>& cache_slots, i64 slots) {
  for (i64 t = 0; t < cache_slots.shape[0]; ++t) {
    const i64 slot = *cache_slots.at(t);
    require(slot >= -1 && slot < slots, op, ": cache_slots must be -1 or a slot of the cache, 0 .. ", slots - 1,
            "; cache_slots[", t, "] is ", slot);
  }
}

inline void check_positions(const char* op, const Tensor<const i32, 1>& positions, i64 rows) {
  for (i64 t = 0; t < positions.shape[0]; ++t) {
    const i64 position = *positions.at(t);
    require(position >= 0 && position < rows, op, ": positions must be rows of cos_sin, 0 .. ", rows - 1,
            "; positions[", t, "] is ", position);
  }
}

}  // namespace glm5
