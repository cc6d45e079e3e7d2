// The products of one token with 64 keys on sm_90a, for the kernels that take tokens one by one: indexer_logits_at and
// the gradients. A block of 128 threads, one warpgroup, copies rows by cp.async into lines of 128 bytes (e4m3: one per
// row, bf16: two) with the 128-byte swizzle, absent keys as zeros. Keys are wgmma's M operand, so that a lane holds the
// heads (h / 2) % 4 = lane % 4 of two keys: the chains of the score's tree (ops/indexer_logits/indexer_logits.h).
#pragma once

#include "core/error.h"
#include "core/fp8.h"
#include "core/indexer.h"
#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace glm5::indexer_token {

template <class Element, int kHeadsOf>
struct Config {
  static constexpr bool kE4m3 = sizeof(Element) == 1;
  static constexpr int kHeads = kHeadsOf;
  static constexpr int kDim = 128;
  static constexpr int kTile = 64;              // keys
  static constexpr int kParts = kE4m3 ? 1 : 2;  // rows of 128 bytes that hold the dim
  static constexpr int kColumns = 128 / static_cast<int>(sizeof(Element));
  static constexpr int kThreads = 128;
  static constexpr int kChunks = kTile * 8 / kThreads;  // pieces of 16 bytes that a thread copies for each part
  static_assert(kTile == 64 && (kHeads == 32 || kHeads == 64));
};

// 64 lines also where there are 32 heads: the transposed reads of the gradient want parts 8 KiB apart.
template <class C>
struct alignas(1024) Rows {
  u8 part[C::kParts][64][128];
};

// Where 16 bytes of a row lie with the 128-byte swizzle.
__device__ __forceinline__ int swizzled(int row, int chunk) { return (chunk ^ (row % 8)) * 16; }

// Starts the copy of a token's queries.
template <class C, class Element>
__device__ __forceinline__ void load_queries(const IndexerOperands& operands, i64 token, Rows<C>& to) {
  const auto q = operands.q.template as<Element>();
  for (int i = threadIdx.x; i < C::kParts * C::kHeads * 8; i += C::kThreads) {
    const int part = i / (C::kHeads * 8), head = i / 8 % C::kHeads, chunk = i % 8;
    const Element* from = q.at(token, head, part * C::kColumns) + chunk * (16 / sizeof(Element));
    ptx::cp_async_cg_16(&to.part[part][head][swizzled(head, chunk)], from, true);
  }
}

// Starts the copy of 64 keys: of row r the key key_of(r), zeros where that is negative.
template <class C, class Element, class KeyOf>
__device__ __forceinline__ void load_keys(const IndexerOperands& operands, Rows<C>& to, const KeyOf& key_of) {
  const auto k = operands.k.template as<Element>();
  const int chunk = threadIdx.x % 8;
#pragma unroll
  for (int i = 0; i < C::kChunks; ++i) {
    const int row = i * (C::kThreads / 8) + threadIdx.x / 8;
    const i64 key = key_of(row);
#pragma unroll
    for (int part = 0; part < C::kParts; ++part) {
      const Element* from = k.data + (key < 0 ? 0 : key * k.stride[0] + part * C::kColumns) +
                            (key < 0 ? 0 : chunk * (16 / static_cast<int>(sizeof(Element))));
      ptx::cp_async_cg_16(&to.part[part][row][swizzled(row, chunk)], from, key >= 0);
    }
  }
}

// products[key, head] = keys[64] queries^T over the whole dim; waits for it.
template <class C, int kRegisters>
__device__ __forceinline__ void multiply(f32 (&products)[kRegisters], const Rows<C>& keys, const Rows<C>& queries) {
  static_assert(kRegisters == C::kHeads / 2);
  ptx::pin(products);
  ptx::wgmma_fence();
#pragma unroll
  for (int part = 0; part < C::kParts; ++part) {
    const u64 a = ptx::wgmma_descriptor(keys.part[part]), b = ptx::wgmma_descriptor(queries.part[part]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const u64 offset = step * ptx::kDescriptorStepK32;  // 32 bytes, in either type
      if constexpr (C::kE4m3) {
        ptx::wgmma_m64k32_f32_e4m3_e4m3(products, a + offset, b + offset, step != 0);
      } else {
        ptx::wgmma_m64k16_f32_bf16_bf16<ptx::Major::k, ptx::Major::k>(products, a + offset, b + offset,
                                                                      part + step != 0);
      }
    }
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(products);
}

// One thread's place: rows `row` and row + 8 of a tile, heads 8 g + 2 quad and 8 g + 2 quad + 1.
struct Lane {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int row = warp * 16 + lane / 4, quad = lane % 4;
};

// weights[2 g + i] is that of head 8 g + 2 quad + i.
template <class C>
__device__ __forceinline__ void load_weights(f32 (&weights)[C::kHeads / 4], const IndexerOperands& operands, i64 token,
                                             const Lane& me) {
#pragma unroll
  for (int i = 0; i < C::kHeads / 4; ++i)
    weights[i] = __ldg(operands.weights.at(token, i / 2 * 8 + 2 * me.quad + i % 2));
}

inline void check_limits(const IndexerOperands& operands, const char* op) {
  const i64 tokens = operands.q.shape[0], heads = operands.q.shape[1], dim = operands.q.shape[2];
  const i64 keys = operands.k.shape[0], bytes = operands.q.is_e4m3 ? 1 : 2;
  require(dim == 128, op, ": dim must be 128 on CUDA, got ", dim);
  require(heads == 32 || heads == 64, op, ": heads must be 32 or 64 on CUDA, got ", heads);
  require(tokens < i64{1} << 31, op, ": tokens must be below 2^31 on CUDA, got ", tokens);
  const auto aligned = [&](const void* data, i64 stride, i64 count) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && (count <= 1 || stride * bytes % 16 == 0);
  };
  const auto& q = operands.q;
  require(aligned(q.data, q.stride[0], tokens) && aligned(q.data, q.stride[1], heads), op,
          ": the rows of q must lie at multiples of 16 bytes on CUDA; its strides are ", q.stride[0], " and ",
          q.stride[1]);
  require(aligned(operands.k.data, operands.k.stride[0], keys), op,
          ": the rows of k must lie at multiples of 16 bytes on CUDA; its stride is ", operands.k.stride[0]);
}

}  // namespace glm5::indexer_token
