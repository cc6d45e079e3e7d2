// What the kernels of sparse_mla_attention take on sm_90a.
#pragma once

#include "core/error.h"
#include "ops/sparse_mla_attention/sparse_mla_attention.h"

namespace glm5::sparse_mla {

inline void check_limits(const char* op, const Tensor<const bf16, 3>& q, const Tensor<const bf16, 2>& kv, i64 v_dim) {
  const i64 tokens = q.shape[0], heads = q.shape[1], qk_dim = q.shape[2];
  require(qk_dim == 576 || qk_dim == 512, op, ": qk_dim must be 576 or 512 on CUDA, got ", qk_dim);
  require(v_dim == 512, op, ": v_dim must be 512 on CUDA, got ", v_dim);
  require(tokens < i64{1} << 31, op, ": tokens must be below 2^31 on CUDA, got ", tokens);
  require(heads <= 1024, op, ": heads must be at most 1024 on CUDA, got ", heads);
  const auto aligned = [](const void* data, i64 stride, i64 count) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && (count <= 1 || stride % 8 == 0);
  };
  require(aligned(q.data, q.stride[0], tokens) && aligned(q.data, q.stride[1], heads), op,
          ": the rows of q must lie at multiples of 16 bytes on CUDA; its strides are ", q.stride[0], " and ",
          q.stride[1]);
  require(aligned(kv.data, kv.stride[0], kv.shape[0]), op,
          ": the rows of kv must lie at multiples of 16 bytes on CUDA; its stride is ", kv.stride[0]);
}

inline void check_cache_limits(const char* op, const MlaCache& cache) {
  require(cache.slots() < i64{1} << 31, op, ": cache must have fewer than 2^31 slots on CUDA, got ", cache.slots());
  require(!cache.bytes.exists() || reinterpret_cast<std::uintptr_t>(cache.bytes.data) % 16 == 0, op,
          ": cache must start at a multiple of 16 bytes on CUDA");
}

// A cache of bf16 is a matrix of slots.
inline Tensor<const bf16, 2> rows_of(const Tensor<bf16, 3>& cache) {
  return {cache.data, {cache.shape[0] * kPage, kMlaDim}, {kMlaDim, 1}};
}

}  // namespace glm5::sparse_mla
