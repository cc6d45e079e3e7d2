// Attention over gathered keys on sm_90a: what its kernels share. A block has one token and up to 64 of its heads; keys
// come 64 places at a time.
//
//   loader          a warpgroup gathers rows of the keys by cp.async into two stages, as parts of 64 dims: 64 lines of
//                   128 bytes, 128-byte swizzle; absent ones as zeros. The stage's last part is the rotated dims of
//                   the keys; once both warpgroups have the scores, their probabilities take its place.
//   two warpgroups  scores: keys are wgmma's M operand, heads its N, half of them each; output: the value's dims are
//                   M, half of them each, all heads N. A few heads cost few columns, and rows of M are always full.
//
// One and the same part of a stage is read as [64 keys][64 dims] for the scores (K-major) and as [64 dims][64 keys] for
// the output (row-major in wgmma's words).
//
// Calculated for 64 heads of 576 dims, a tile and SM at 1.755 GHz, not measured: scores 36 steps of 64 x 32 x 16 by
// each warpgroup, which read 3 KiB of shared memory each: 1728 clocks; output 32 steps of 64 x 64 x 16: 1024
// clocks; softmax, two barriers: some 600. The gather, 72 KiB from the L2 at some 24 bytes per clock, needs 3072 and
// runs beside them.
#pragma once

#include <cuda_fp16.h>

#include "core/fp8.h"
#include "core/mla_cache.h"
#include "cuda/pipeline.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/cvt.cuh"
#include "cuda/ptx/ex2.cuh"
#include "cuda/ptx/fence.cuh"
#include "cuda/ptx/setmaxnreg.cuh"
#include "cuda/ptx/stmatrix.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace glm5::cuda {

constexpr f32 kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

template <int kHeadsOf, int kQkDimOf>
struct SparseMlaTile {
  static constexpr int kHeads = kHeadsOf, kHalf = kHeads / 2;  // of a block; of a warpgroup's scores
  static constexpr int kQkDim = kQkDimOf, kParts = kQkDim / 64;
  static constexpr int kVDim = 512, kValueParts = kVDim / 64;
  static constexpr int kTile = 64, kStages = 2;  // two stages of 72 KiB and the queries fill the shared memory
  static constexpr int kMathThreads = 256, kLoaders = 128, kThreads = kMathThreads + kLoaders;
  static constexpr int kLoaderRegisters = 40, kMathRegisters = 232;
  static constexpr int kOwn = kHalf / 4;  // heads whose scores a lane has
  static_assert(kHeads == 16 || kHeads == 32 || kHeads == 64);
  static_assert(kQkDim == 512 || kQkDim == 576);
};

template <class T>
struct SparseMlaStorage {
  alignas(1024) u8 queries[T::kParts][T::kHeads][128];
  alignas(1024) u8 keys[T::kStages][9][T::kTile][128];  // the last part: rotated dims, then probabilities
  alignas(16) f32 partial[2][4][T::kHalf];              // of a warp's 16 keys: the largest score; at the end, the sum
  alignas(16) f32 factors[T::kHeads];                   // by which the output of a head is to be multiplied
  Pipeline<T::kStages> ring;

  __device__ __forceinline__ u8* probabilities(int stage) { return keys[stage][8][0]; }
};

// Where 16 bytes of a line lie with the 128-byte swizzle.
__device__ __forceinline__ int swizzled(int line, int chunk) { return (chunk ^ (line % 8)) * 16; }

// A lane's place in the scores: keys `row` and row + 8 of the tile; of its half, heads 8 g + 2 quad and one more.
struct SparseMlaLane {
  int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  int row = warp * 16 + lane / 4, quad = lane % 4;

  // Of its half, the head of the scores 4 (h / 2) + h % 2 and, eight keys on, 4 (h / 2) + h % 2 + 2.
  __device__ __forceinline__ int head(int h) const { return h / 2 * 8 + 2 * quad + h % 2; }
};

// The keys that a token names.
struct ChosenKeys {
  const i32* indices;  // of the token
  int count;           // places that may be present
  int keys;            // dense keys, slots, or positions of the sequence
  const i32* table = nullptr;  // the pages of the token's sequence; a key is then a slot
  int pages = 0;

  __device__ __forceinline__ ChosenKeys(const Tensor<const i32, 2>& all, const Tensor<const i32, 1>& topk_length,
                                        i64 keys, i64 token)
      : indices(all.at(token, 0)), count(static_cast<int>(all.shape[1])), keys(static_cast<int>(keys)) {
    if (topk_length.exists()) count = min(count, __ldg(topk_length.at(token)));
  }
  // Of a cache: without a block table indices are slots. A sequence that the table lacks has no keys.
  __device__ __forceinline__ ChosenKeys(const Tensor<const i32, 2>& all, const Tensor<const i32, 1>& topk_length,
                                        i64 slots, const Tensor<const i32, 2>& block_table,
                                        const Tensor<const i32, 1>& sequences, i64 token)
      : ChosenKeys(all, topk_length, slots, token) {
    if (!block_table.exists()) return;
    const int sequence = __ldg(sequences.at(token));
    pages = static_cast<int>(slots / kPage);
    keys = static_cast<int>(block_table.shape[1] * kPage);
    if (sequence >= 0 && sequence < block_table.shape[0]) {
      table = block_table.at(sequence, 0);
    } else {
      count = 0;
    }
  }
  __device__ __forceinline__ int tiles() const { return count > 0 ? (count + 63) / 64 : 0; }
  // -1 where there is none.
  __device__ __forceinline__ int at(int place) const {
    const int key = place < count ? __ldg(indices + place) : -1;
    if (key < 0 || key >= keys) return -1;
    if (table == nullptr) return key;
    const int page = __ldg(table + key / static_cast<int>(kPage));
    return page >= 0 && page < pages ? page * static_cast<int>(kPage) + key % static_cast<int>(kPage) : -1;
  }
};

// ---- loader: one warpgroup ----

// Starts the copies of one line of a key, or zeros where key < 0; eight threads copy a line.
template <int kParts>
__device__ __forceinline__ void start_loading_key(const Tensor<const bf16, 2>& kv, int key, u8 (*to)[64][128], int line,
                                                  int chunk) {
  const bf16* from = key < 0 ? kv.data : kv.at(key, chunk * 8);
#pragma unroll
  for (int part = 0; part < kParts; ++part)
    ptx::cp_async_cg_16(&to[part][line][swizzled(line, chunk)], key < 0 ? from : from + part * 64, key >= 0);
}

// Each thread has the lines first + 16 i.
template <class T, class Storage>
__device__ __forceinline__ void load_keys(const ChosenKeys& chosen, const Tensor<const bf16, 2>& kv, Storage& smem,
                                          RingPosition<T::kStages>& at, int first_tile, int last_tile) {
  constexpr int kLines = T::kTile / 16;
  const int thread = threadIdx.x % T::kLoaders, first = thread / 8, chunk = thread % 8;
  int ahead[kLines];
#pragma unroll
  for (int i = 0; i < kLines; ++i) ahead[i] = chosen.at(first_tile * T::kTile + first + 16 * i);
  for (int tile = first_tile; tile < last_tile; ++tile, at.advance()) {
    int key[kLines];
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      key[i] = ahead[i];
      ahead[i] = chosen.at((tile + 1) * T::kTile + first + 16 * i);
    }
    smem.ring.wait_empty(at);
#pragma unroll
    for (int i = 0; i < kLines; ++i)
      start_loading_key<T::kParts>(kv, key[i], smem.keys[at.stage], first + 16 * i, chunk);
    ptx::cp_async_mbarrier_arrive_noinc(&smem.ring.full[at.stage]);
  }
}

// Two e4m3 times their scale, as bf16.
__device__ __forceinline__ u32 decode_pair(u32 pair, f32 scale) {
  const u32 halves = ptx::cvt_rn_f16x2_e4m3x2(static_cast<u16>(pair));
  const float2 wide = __half22float2(*reinterpret_cast<const __half2*>(&halves));
  return ptx::cvt_rn_bf16x2_f32(__fmul_rn(wide.y, scale), __fmul_rn(wide.x, scale));
}

// The same keys from a latent cache of bytes, decoded on the way. A thread has 8 dims of every part of a line.
template <class T>
__device__ __forceinline__ void load_cached_keys(const ChosenKeys& chosen, const MlaCache& cache,
                                                 SparseMlaStorage<T>& smem, RingPosition<T::kStages>& at) {
  constexpr int kLines = T::kTile / 16;
  const int thread = threadIdx.x % T::kLoaders, first = thread / 8, chunk = thread % 8;
  for (int tile = 0; tile < chosen.tiles(); ++tile, at.advance()) {
    smem.ring.wait_empty(at);
#pragma unroll 1
    for (int line = first; line < kLines * 16; line += 16) {
      const int slot = chosen.at(tile * T::kTile + line);
      uint2 values[T::kValueParts] = {};
      float4 scales = {};
      uint4 rope = {};
      if (slot >= 0) {
        const u8* token = cache.bytes_of(slot);
#pragma unroll
        for (int part = 0; part < T::kValueParts; ++part)
          values[part] = __ldg(reinterpret_cast<const uint2*>(token + part * 64) + chunk);
        scales = __ldg(reinterpret_cast<const float4*>(token + kMlaScalesAt));
        rope = __ldg(reinterpret_cast<const uint4*>(token + kMlaRopeAt) + chunk);
      }
      const int place = swizzled(line, chunk);
#pragma unroll
      for (int part = 0; part < T::kValueParts; ++part) {
        const f32 scale = part < 2 ? scales.x : part < 4 ? scales.y : part < 6 ? scales.z : scales.w;
        *reinterpret_cast<uint4*>(&smem.keys[at.stage][part][line][place]) = {
            decode_pair(values[part].x & 0xffff, scale), decode_pair(values[part].x >> 16, scale),
            decode_pair(values[part].y & 0xffff, scale), decode_pair(values[part].y >> 16, scale)};
      }
      *reinterpret_cast<uint4*>(&smem.keys[at.stage][T::kValueParts][line][place]) = rope;
    }
    ptx::mbarrier_arrive(&smem.ring.full[at.stage]);
  }
}

// ---- two warpgroups ----

template <class T>
__device__ __forceinline__ void sync_math() {
  ptx::bar_sync(1, T::kMathThreads);
}

// One group of copies: kParts x 64 columns of the heads from first_head on, those beyond the tensor as zeros. By
// `threads` threads.
template <int kParts, int kHeads>
__device__ __forceinline__ void start_loading_heads(const Tensor<const bf16, 3>& from, i64 token, i64 first_head,
                                                    u8 (&to)[kParts][kHeads][128], int threads) {
  for (int i = threadIdx.x; i < kParts * kHeads * 8; i += threads) {
    const int part = i / (kHeads * 8), head = i / 8 % kHeads, chunk = i % 8;
    const bool exists = first_head + head < from.shape[1];
    const bf16* piece = exists ? from.at(token, first_head + head, part * 64 + chunk * 8) : from.data;
    ptx::cp_async_cg_16(&to[part][head][swizzled(head, chunk)], piece, exists);
  }
  ptx::cp_async_commit_group();
}

template <class T, class Storage>
__device__ __forceinline__ void load_queries(const Tensor<const bf16, 3>& q, i64 token, i64 first_head,
                                             Storage& smem) {
  start_loading_heads(q, token, first_head, smem.queries, T::kMathThreads);
  ptx::cp_async_wait_group<0>();
  ptx::fence_proxy_async_shared();
  sync_math<T>();
}

// products[key, head] = keys rows^T over kParts x 64 columns, of the heads from `first_head` on. The caller fences,
// commits and waits.
template <int kParts, int kHeads, int kRegisters>
__device__ __forceinline__ void multiply_rows(f32 (&products)[kRegisters], const u8 (*keys)[64][128],
                                              const u8 (&rows)[kParts][kHeads][128], int first_head) {
  using ptx::Major;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const u64 key = ptx::wgmma_descriptor(keys[part]), row = ptx::wgmma_descriptor(rows[part][first_head]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const u64 offset = step * ptx::kDescriptorStepK16<Major::k>;
      ptx::wgmma_m64k16_f32_bf16_bf16<Major::k, Major::k>(products, key + offset, row + offset, part + step != 0);
    }
  }
}

template <class T>
__device__ __forceinline__ void multiply_scores(f32 (&products)[T::kHalf / 2], const SparseMlaStorage<T>& smem,
                                                int stage, int warpgroup) {
  ptx::pin(products);
  ptx::wgmma_fence();
  multiply_rows(products, smem.keys[stage], smem.queries, warpgroup * T::kHalf);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(products);
}

// The output of 256 of the value's dims and all heads: block b of 64 dims, registers as wgmma has them.
template <class T>
using SparseMlaOutput = f32[T::kValueParts / 2][T::kHeads / 2];

template <class T>
__device__ __forceinline__ void add_values(SparseMlaOutput<T>& out, SparseMlaStorage<T>& smem, int stage,
                                           int warpgroup, bool first) {
  using ptx::Major;
#pragma unroll
  for (auto& block : out) ptx::pin(block);
  ptx::wgmma_fence();
  const u64 probabilities = ptx::wgmma_descriptor(smem.probabilities(stage));
#pragma unroll
  for (int b = 0; b < T::kValueParts / 2; ++b) {
    const u64 values = ptx::wgmma_descriptor_row_major(smem.keys[stage][warpgroup * (T::kValueParts / 2) + b]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::k>(
          out[b], values + step * ptx::kDescriptorStepK16<Major::rows>,
          probabilities + step * ptx::kDescriptorStepK16<Major::k>, !first || step != 0);
    }
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
#pragma unroll
  for (auto& block : out) ptx::pin(block);
}

// products of the keys `row` and row + 8 become scores in powers of two, -inf where there is no key.
template <class T>
__device__ __forceinline__ void scale_scores(f32 (&products)[T::kHalf / 2], f32 scale_log2, bool first, bool second) {
#pragma unroll
  for (int i = 0; i < T::kHalf / 2; ++i) {
    const bool present = i / 2 % 2 == 0 ? first : second;
    products[i] = present ? __fmul_rn(products[i], scale_log2) : -__builtin_inff();
  }
}

// The lane's running state, of its heads: in powers of two the largest score so far, and its keys' sum of
// probabilities relative to it.
template <class T>
struct SparseMlaSoftmax {
  f32 largest[T::kOwn], sum[T::kOwn];

  __device__ __forceinline__ SparseMlaSoftmax() {
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) largest[h] = -__builtin_inff(), sum[h] = 0.0f;
  }

  // Before a barrier of both warpgroups.
  __device__ __forceinline__ void publish_largest(const f32 (&scores)[T::kHalf / 2], SparseMlaStorage<T>& smem,
                                                  const SparseMlaLane& me) const {
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) {
      f32 most = fmaxf(scores[4 * (h / 2) + h % 2], scores[4 * (h / 2) + h % 2 + 2]);
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2)
        most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, distance));
      if (me.lane < 4) smem.partial[me.warpgroup][me.warp][me.head(h)] = most;
    }
  }

  // After it: scores become probabilities. Publishes by how much older output is to be multiplied.
  __device__ __forceinline__ void advance(f32 (&scores)[T::kHalf / 2], SparseMlaStorage<T>& smem,
                                          const SparseMlaLane& me) {
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) {
      const int head = me.head(h);
      f32 most = largest[h];
#pragma unroll
      for (int warp = 0; warp < 4; ++warp) most = fmaxf(most, smem.partial[me.warpgroup][warp][head]);
      const f32 base = most == -__builtin_inff() ? 0.0f : most;  // -inf - -inf would be NaN
      const f32 factor = ptx::ex2_approx_ftz(__fsub_rn(largest[h], base));
      f32 &first = scores[4 * (h / 2) + h % 2], &second = scores[4 * (h / 2) + h % 2 + 2];
      first = ptx::ex2_approx_ftz(__fsub_rn(first, base));
      second = ptx::ex2_approx_ftz(__fsub_rn(second, base));
      sum[h] = __fmaf_rn(sum[h], factor, __fadd_rn(first, second));
      largest[h] = most;
      if (me.warp == 0 && me.lane < 4) smem.factors[me.warpgroup * T::kHalf + head] = factor;
    }
  }
};

// bf16 of what a lane has of a warpgroup's kHalf heads, in pairs, as lines of 64 keys, one for each head from lines on.
template <int kHalf>
__device__ __forceinline__ void store_pairs_by_head(const u32 (&pairs)[kHalf / 4], u8* lines, const SparseMlaLane& me) {
  constexpr int kMatrices = kHalf >= 16 ? 4 : 2;
#pragma unroll
  for (int group = 0; group < kHalf / 8; group += kMatrices / 2) {
    u32 matrices[kMatrices];
#pragma unroll
    for (int i = 0; i < kMatrices; ++i) matrices[i] = pairs[2 * group + i];
    const int matrix = me.lane / 8 % kMatrices, head = (group + matrix / 2) * 8 + me.lane % 8;
    ptx::stmatrix_trans(lines + head * 128 + swizzled(head, 2 * me.warp + matrix % 2), matrices);
  }
}
template <int kHalf>
__device__ __forceinline__ void store_by_head(const f32 (&values)[kHalf / 2], u8* lines, const SparseMlaLane& me) {
  u32 pairs[kHalf / 4];
#pragma unroll
  for (int i = 0; i < kHalf / 4; ++i) pairs[i] = ptx::cvt_rn_bf16x2_f32(values[2 * i + 1], values[2 * i]);
  store_pairs_by_head<kHalf>(pairs, lines, me);
}

// Multiplies the output of every head by smem.factors; where all are 1, which is the rule after a few tiles, there is
// nothing to do.
template <class T>
__device__ __forceinline__ void rescale(SparseMlaOutput<T>& out, const SparseMlaStorage<T>& smem,
                                        const SparseMlaLane& me) {
  bool changes = false;
#pragma unroll
  for (int group = 0; group < T::kHeads / 8; ++group) {
    const float2 factor = *reinterpret_cast<const float2*>(&smem.factors[8 * group + 2 * me.quad]);
    changes = changes || factor.x != 1.0f || factor.y != 1.0f;
  }
  if (!__any_sync(0xffffffff, changes)) return;
#pragma unroll
  for (int group = 0; group < T::kHeads / 8; ++group) {
    const float2 factor = *reinterpret_cast<const float2*>(&smem.factors[8 * group + 2 * me.quad]);
#pragma unroll
    for (int b = 0; b < T::kValueParts / 2; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        out[b][4 * group + i] = __fmul_rn(out[b][4 * group + i], i % 2 == 0 ? factor.x : factor.y);
    }
  }
}

// bf16 of 64 dims of all heads, a warpgroup's accumulators, into lines of kLine bytes, one for each head, their chunks
// of 16 bytes exchanged by head; the dims from 64 * part on.
template <int kHeads, int kLine>
__device__ __forceinline__ void stage_dims(const f32 (&dims)[kHeads / 2], int part, u8* staging,
                                           const SparseMlaLane& me) {
#pragma unroll
  for (int group = 0; group < kHeads / 8; group += 2) {
    u32 matrices[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pair = 4 * group + 2 * i;
      matrices[i] = ptx::cvt_rn_bf16x2_f32(dims[pair + 1], dims[pair]);
    }
    const int matrix = me.lane / 8, head = (group + matrix / 2) * 8 + me.lane % 8;
    const int chunk = 8 * part + 2 * me.warp + matrix % 2;
    ptx::stmatrix_trans(staging + head * kLine + (chunk ^ (head % 8)) * 16, matrices);
  }
}

// Staged lines to global memory, by `threads` threads.
template <int kLine>
__device__ __forceinline__ void store_lines(const u8* staging, bf16* to, i64 head_stride, int heads, int threads) {
  constexpr int kChunks = kLine / 16;
  for (int i = threadIdx.x; i < heads * kChunks; i += threads) {
    const int head = i / kChunks, chunk = i % kChunks;
    const uint4 piece = *reinterpret_cast<const uint4*>(staging + head * kLine + (chunk ^ (head % 8)) * 16);
    *reinterpret_cast<uint4*>(to + head * head_stride + chunk * 8) = piece;
  }
}

}  // namespace glm5::cuda
