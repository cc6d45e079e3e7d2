// What the gradients of the indexer's scores do with the products of one token and 64 keys on sm_90a:
//
//   a[head][key]        = d > 0 ? g * weight : 0    as two bf16, high and low, through shared memory: a line per head
//   d_q^T[dim, head]    += keys^T a^T
//   d_k[key, dim]        = a^T queries
//   d_weights[head]     : chains over the keys that a lane holds, added up at the end
#pragma once

#include "cuda/indexer_token.cuh"

namespace glm5::indexer_token {

struct alignas(1024) Gated {
  u8 half[2][64][128];  // high and low, [head][key], bf16, swizzled
};

// This thread's part of a; g is that of its two keys. An absent key is zeros, and so is its part.
template <class C>
__device__ __forceinline__ void gate(Gated& to, const f32 (&products)[C::kHeads / 2],
                                     const f32 (&weights)[C::kHeads / 4], const f32 (&g)[2], const Lane& me) {
#pragma unroll
  for (int group = 0; group < C::kHeads / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int head = 8 * group + 2 * me.quad + i % 2, key = me.row + 8 * (i / 2);
      const f32 a = products[4 * group + i] > 0.0f ? __fmul_rn(g[i / 2], weights[2 * group + i % 2]) : 0.0f;
      const int place = swizzled(head, key / 8) + key % 8 * 2;
      const bf16 high = to_bf16(a);
      *reinterpret_cast<bf16*>(&to.half[0][head][place]) = high;
      *reinterpret_cast<bf16*>(&to.half[1][head][place]) = to_bf16(__fsub_rn(a, to_f32(high)));
    }
  }
}

// chains[2 group + i] is that of the weight with the same number; only keys that count enter them.
template <class C>
__device__ __forceinline__ void add_to_chains(f32 (&chains)[C::kHeads / 4], const f32 (&products)[C::kHeads / 2],
                                              const f32 (&g)[2], const bool (&counts)[2]) {
#pragma unroll
  for (int group = 0; group < C::kHeads / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const f32 product = products[4 * group + i], relu = 0.5f * __fadd_rn(product, fabsf(product));
      f32& chain = chains[2 * group + i % 2];
      chain = counts[i / 2] ? __fmaf_rn(g[i / 2], relu, chain) : chain;
    }
  }
}

// d_q^T = keys^T a^T for 64 keys, plus d_q^T where `accumulate`. The caller fences, commits and waits.
template <class C>
__device__ __forceinline__ void multiply_by_keys(f32 (&d_q)[2][C::kHeads / 2], const Gated& a, const Rows<C>& keys,
                                                 bool accumulate) {
  using ptx::Major;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u64 a_by_key = ptx::wgmma_descriptor(a.half[half]);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const u64 by_row = ptx::wgmma_descriptor_row_major(keys.part[part]);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::k>(
            d_q[part], by_row + step * ptx::kDescriptorStepK16<Major::rows>,
            a_by_key + step * ptx::kDescriptorStepK16<Major::k>, accumulate || half + step != 0);
      }
    }
  }
}

// d_k = a^T queries. The caller fences, commits and waits.
template <class C>
__device__ __forceinline__ void multiply_by_queries(f32 (&d_k)[64], const Gated& a, const Rows<C>& queries) {
  using ptx::Major;
  const u64 by_head = ptx::wgmma_descriptor_row_major(queries.part[0]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u64 a_by_head = ptx::wgmma_descriptor_row_major(a.half[half]);
#pragma unroll
    for (int step = 0; step < C::kHeads / 16; ++step) {
      const u64 offset = step * ptx::kDescriptorStepK16<Major::rows>;
      ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::rows>(d_k, a_by_head + offset, by_head + offset,
                                                                half + step != 0);
    }
  }
}

template <class C>
__device__ __forceinline__ void store_d_q(const Tensor<bf16, 3>& to, i64 token, const f32 (&d_q)[2][C::kHeads / 2],
                                          const Lane& me) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int i = 0; i < C::kHeads / 2; ++i)
      *to.at(token, i / 4 * 8 + 2 * me.quad + i % 2, 64 * part + me.row + i / 2 % 2 * 8) = to_bf16(d_q[part][i]);
  }
}

// The chains of eight lanes, then of four warps.
template <class C>
__device__ __forceinline__ void store_d_weights(const Tensor<f32, 2>& to, i64 token, f32 (&chains)[C::kHeads / 4],
                                                f32 (&sums)[4][C::kHeads], const Lane& me) {
#pragma unroll
  for (int i = 0; i < C::kHeads / 4; ++i) {
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
      chains[i] = __fadd_rn(chains[i], __shfl_xor_sync(0xffffffff, chains[i], distance));
    if (me.lane < 4) sums[me.warp][i / 2 * 8 + 2 * me.quad + i % 2] = chains[i];
  }
  __syncthreads();
  const int head = threadIdx.x;
  if (head >= C::kHeads) return;
  *to.at(token, head) = __fadd_rn(__fadd_rn(__fadd_rn(sums[0][head], sums[1][head]), sums[2][head]), sums[3][head]);
}

}  // namespace glm5::indexer_token
