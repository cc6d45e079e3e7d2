// The gradient of sparse_mla_attention on sm_90a: a block has one token and up to 64 of its heads, three warpgroups,
// and for every 64 places six products:
//
//   s[key, head], dp[key, head]   = kv q^T and v d_out^T; two warpgroups have half of the heads each
//   ds, W                         as bf16 through shared memory, a line of 64 keys per head
//   d_q^T[dim, head]             += kv^T ds^T    in registers over all tiles; a warpgroup has a third of the dims
//   d_kv[key, dim]                = ds^T q + W^T d_out, 64 dims at a time; added to the sums of the keys
//
// The tree differs from the CPU's: P = 2^(s log2 e - lse log2 e); e = fma(factor, dp - delta, d_lse); delta as 32
// chains over v_dim and a butterfly; d_q by wgmma over places. d_kv is summed in fixed point: each tile's row is
// rounded to a multiple of 2^-shift and added as 64-bit integers, which is exact, so that the order of the additions,
// which atomics leave open, cannot be seen. The shift is as great as a bound on a key's sum allows: the most places
// that name one key, times heads * (|scale| (|d_out| |v| + |delta| + |d_lse|) |q| + |d_out|), of the largest of each.
// What is lost is 2^-61 of that bound. Contributions that are not finite mark their key, whose gradient is then NaN.
// d_sink: f64, 256 chains over tokens and a butterfly.
//
// Calculated per token with 2048 keys and 64 heads, not measured: 721 MFLOP, 0.91 us of all tensor cores at
// 790 TFLOP/s; 9.4 MB of 64-bit reductions in the L2, 3.9 us at 2.4 TB/s. It is bound by these.
#include "cuda/fixed_point.cuh"
#include "cuda/launch.h"
#include "cuda/sparse_mla.cuh"
#include "ops/sparse_mla_attention/limits_sm90.h"

namespace glm5 {
namespace {

using namespace cuda;
using Args = SparseMlaAttentionBwdArgs;

constexpr const char* kOp = "sparse_mla_attention_bwd";

// The workspace. Maxima are bits of finite magnitudes, but for the last.
enum Maximum : int { kQuery, kDOut, kDOutNorm, kValueNorm, kDelta, kDLse, kCount, kMaxima };

struct Sums {
  unsigned long long* sums;  // [keys, qk_dim]
  u32* marks;                // [keys]
  u32* counts;               // [keys], places that name the key
  u32* maxima;               // [kMaxima]
  f32* deltas;               // [tokens, heads]
  i64 dim;

  __host__ Sums(const Args& args)
      : sums(reinterpret_cast<unsigned long long*>(args.workspace.data)),
        marks(reinterpret_cast<u32*>(sums + args.kv.shape[0] * args.q.shape[2])),
        counts(marks + args.kv.shape[0]),
        maxima(counts + args.kv.shape[0]),
        deltas(reinterpret_cast<f32*>(maxima + 8)),
        dim(args.q.shape[2]) {}
  __host__ i64 bytes_to_clear() const { return reinterpret_cast<u8*>(deltas) - reinterpret_cast<u8*>(sums); }
};

// ---- before: counts, maxima, deltas ----

// A block per token.
__global__ void count_kernel(const __grid_constant__ Args args, Sums to) {
  const ChosenKeys chosen(args.indices, args.topk_length, args.kv.shape[0], blockIdx.x);
  for (int place = threadIdx.x; place < chosen.count; place += blockDim.x) {
    const int key = chosen.at(place);
    if (key >= 0) atomicAdd(&to.counts[key], 1u);
  }
}

// The length of a row, in all lanes, as the bits of a number not below it; 0 where it is not finite.
__device__ __forceinline__ u32 norm_of(const bf16* row, int dim, int lane) {
  f64 sum = 0.0;
  for (int i = lane; i < dim; i += 32) {
    const f64 value = to_f32(row[i]);
    sum = fma(value, value, sum);
  }
  for (int distance = 1; distance < 32; distance *= 2) sum += __shfl_xor_sync(0xffffffff, sum, distance);
  return finite_magnitude(__double2float_ru(sqrt(sum)));
}

// A warp per key.
__global__ void keys_kernel(const __grid_constant__ Args args, Sums to) {
  const i64 key = (i64{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (key >= args.kv.shape[0] || to.counts[key] == 0) return;
  const u32 norm = norm_of(args.kv.at(key, 0), static_cast<int>(args.out.shape[2]), threadIdx.x % 32);
  keep_largest(&to.maxima[kValueNorm], norm);
  keep_largest(&to.maxima[kCount], to.counts[key]);
}

// A warp per token and head.
__global__ void heads_kernel(const __grid_constant__ Args args, Sums to) {
  const i64 heads = args.q.shape[1], row = (i64{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  const i64 token = row / heads, head = row % heads;
  if (token >= args.q.shape[0]) return;
  const int lane = threadIdx.x % 32, v_dim = static_cast<int>(args.out.shape[2]);
  const bf16 *out = args.out.at(token, head, 0), *d_out = args.d_out.at(token, head, 0), *q = args.q.at(token, head, 0);
  f32 delta = 0.0f;
  u32 largest_d_out = 0, largest_q = 0;
  for (int i = lane; i < v_dim; i += 32) {
    delta = __fmaf_rn(to_f32(out[i]), to_f32(d_out[i]), delta);
    largest_d_out = max(largest_d_out, finite_magnitude(to_f32(d_out[i])));
  }
  for (int i = lane; i < to.dim; i += 32) largest_q = max(largest_q, finite_magnitude(to_f32(q[i])));
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2)
    delta = __fadd_rn(delta, __shfl_xor_sync(0xffffffff, delta, distance));
  keep_largest(&to.maxima[kQuery], largest_q);
  keep_largest(&to.maxima[kDOut], largest_d_out);
  keep_largest(&to.maxima[kDOutNorm], norm_of(d_out, v_dim, lane));
  keep_largest(&to.maxima[kDelta], finite_magnitude(delta));
  keep_largest(&to.maxima[kDLse], finite_magnitude(*args.d_lse.at(token, head)));
  if (lane == 0) to.deltas[row] = delta;
}

// Of a key's sum; 1.01^2 for the roundings of P and of bf16.
__device__ __forceinline__ int shift_of(const Args& args, const Sums& sums) {
  const auto most = [&](Maximum which) { return static_cast<f64>(f32_of_bits(__ldcg(&sums.maxima[which]))); };
  const f64 d_p = most(kDOutNorm) * most(kValueNorm) + most(kDelta) + most(kDLse);
  const f64 each = fabs(static_cast<f64>(args.scale)) * d_p * most(kQuery) + most(kDOut);
  return fixed_point_shift(1.0201 * each * static_cast<f64>(args.q.shape[1]) * __ldcg(&sums.maxima[kCount]));
}

__device__ __forceinline__ f32 factor_of(const Args& args, f32 lse, i64 head) {
  return args.sink.exists() ? __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(__fsub_rn(__ldg(args.sink.at(head)), lse)))) : 1.0f;
}

// A block per head.
__global__ void sink_kernel(const __grid_constant__ Args args, Sums from) {
  __shared__ f64 sums[256];
  const i64 head = blockIdx.x, heads = args.q.shape[1];
  f64 sum = 0.0;
  for (i64 token = threadIdx.x; token < args.q.shape[0]; token += 256) {
    const f32 lse = *args.lse.at(token, head);
    if (lse == -__builtin_inff()) continue;  // no key
    sum -= static_cast<f64>(__fmul_rn(__fsub_rn(1.0f, factor_of(args, lse, head)), from.deltas[token * heads + head]));
  }
  sums[threadIdx.x] = sum;
  for (int half = 128; half >= 1; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *args.d_sink.at(head) = static_cast<f32>(sums[0]);
}

// ---- the products ----

template <int kHeadsOf, int kQkDimOf>
struct Tile : SparseMlaTile<kHeadsOf, kQkDimOf> {
  static constexpr int kAll = 384;
  static constexpr int kMostParts = 3;  // of d_q, that a warpgroup has
};

template <class T>
struct Storage {
  alignas(1024) u8 queries[T::kParts][T::kHeads][128];
  alignas(1024) u8 d_outs[T::kValueParts][T::kHeads][128];
  alignas(1024) u8 keys[T::kParts][T::kTile][128];
  alignas(1024) u8 d_scores[T::kHeads][128], weights[T::kHeads][128];  // ds and W, [head][key]
  f32 lse_log2[T::kHeads], deltas[T::kHeads], factors[T::kHeads], d_lse[T::kHeads];
};

template <class T>
__device__ __forceinline__ void load_heads(const Args& args, const Sums& sums, i64 token, i64 first_head,
                                           Storage<T>& smem) {
  start_loading_heads(args.q, token, first_head, smem.queries, T::kAll);
  start_loading_heads(args.d_out, token, first_head, smem.d_outs, T::kAll);
  if (threadIdx.x < T::kHeads) {
    const i64 h = threadIdx.x, head = first_head + h, heads = args.q.shape[1];
    const f32 lse = head < heads ? *args.lse.at(token, head) : __builtin_inff();  // P = 0
    smem.lse_log2[h] = __fmul_rn(lse, kLog2E);
    smem.deltas[h] = head < heads ? sums.deltas[token * heads + head] : 0.0f;
    smem.factors[h] = head < heads ? factor_of(args, lse, head) : 0.0f;
    smem.d_lse[h] = head < heads ? *args.d_lse.at(token, head) : 0.0f;
  }
}

// From products of keys with queries, and with d_outs, of the lane's two keys: ds and W in their places.
template <class T>
__device__ __forceinline__ void differentiate_scores(f32 (&scores)[T::kHalf / 2], f32 (&d_p)[T::kHalf / 2], f32 scale,
                                                     const int (&keys)[2], const Storage<T>& smem,
                                                     const SparseMlaLane& me) {
  const f32 scale_log2 = __fmul_rn(scale, kLog2E);
#pragma unroll
  for (int i = 0; i < T::kHalf / 2; ++i) {
    const int head = me.warpgroup * T::kHalf + i / 4 * 8 + 2 * me.quad + i % 2;
    const f32 factor = smem.factors[head];
    const f32 p = ptx::ex2_approx_ftz(__fsub_rn(__fmul_rn(scores[i], scale_log2), smem.lse_log2[head]));
    const f32 e = __fmaf_rn(factor, __fsub_rn(d_p[i], smem.deltas[head]), smem.d_lse[head]);
    const bool present = keys[i / 2 % 2] >= 0;
    scores[i] = present ? __fmul_rn(__fmul_rn(p, e), scale) : 0.0f;
    d_p[i] = present ? __fmul_rn(factor, p) : 0.0f;
  }
}

// ds and W of a tile, by two warpgroups.
template <class T>
__device__ __forceinline__ void make_d_scores(const Args& args, Storage<T>& smem, const int (&keys)[2],
                                              const SparseMlaLane& me) {
  const int first = me.warpgroup * T::kHalf;
  f32 scores[T::kHalf / 2], d_p[T::kHalf / 2];
  ptx::pin(scores);
  ptx::pin(d_p);
  ptx::wgmma_fence();
  multiply_rows(scores, smem.keys, smem.queries, first);
  multiply_rows(d_p, smem.keys, smem.d_outs, first);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(scores);
  ptx::pin(d_p);
  differentiate_scores<T>(scores, d_p, args.scale, keys, smem, me);
  store_by_head<T::kHalf>(scores, smem.d_scores[first], me);
  store_by_head<T::kHalf>(d_p, smem.weights[first], me);
}

// For 64 dims: d_q[dim, head] += kv^T ds^T, and d_kv[key, dim] = ds^T q + W^T d_out (kIsValue) or ds^T q.
template <bool kIsValue, class T>
__device__ __forceinline__ void multiply_back(f32 (&d_q)[T::kHeads / 2], f32 (&d_kv)[32], const Storage<T>& smem,
                                              int part, bool is_first) {
  using ptx::Major;
  constexpr u64 kStep = ptx::kDescriptorStepK16<Major::rows>;
  ptx::pin(d_q);
  ptx::pin(d_kv);
  ptx::wgmma_fence();
  const u64 by_dim = ptx::wgmma_descriptor_row_major(smem.keys[part]), by_head = ptx::wgmma_descriptor(smem.d_scores);
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::k>(
        d_q, by_dim + step * kStep, by_head + step * ptx::kDescriptorStepK16<Major::k>, !is_first || step != 0);
  }
  const u64 d_scores = ptx::wgmma_descriptor_row_major(smem.d_scores);
  const u64 queries = ptx::wgmma_descriptor_row_major(smem.queries[part]);
#pragma unroll
  for (int step = 0; step < T::kHeads / 16; ++step)
    ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::rows>(d_kv, d_scores + step * kStep, queries + step * kStep,
                                                              step != 0);
  if constexpr (kIsValue) {
    const u64 weights = ptx::wgmma_descriptor_row_major(smem.weights);
    const u64 d_outs = ptx::wgmma_descriptor_row_major(smem.d_outs[part]);
#pragma unroll
    for (int step = 0; step < T::kHeads / 16; ++step)
      ptx::wgmma_m64k16_f32_bf16_bf16<Major::rows, Major::rows>(d_kv, weights + step * kStep, d_outs + step * kStep,
                                                                true);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(d_q);
  ptx::pin(d_kv);
}

__device__ __forceinline__ void add_to_sums(const Sums& to, const f32 (&d_kv)[32], const int (&keys)[2], int part,
                                            int shift, const SparseMlaLane& me) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (keys[r] < 0) continue;
    bool all_finite = true;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const f32 value = d_kv[i / 2 * 4 + 2 * r + i % 2];
      all_finite &= is_finite(value);
      add_fixed_point(&to.sums[keys[r] * to.dim + 64 * part + i / 2 * 8 + 2 * me.quad + i % 2], value, shift);
    }
    if (!all_finite) atomicOr(&to.marks[keys[r]], 1u);
  }
}

template <class T>
__device__ __forceinline__ void differentiate(const Args& args, const Sums& sums, i64 token, i64 first_head,
                                              Storage<T>& smem) {
  const SparseMlaLane me;
  const ChosenKeys chosen(args.indices, args.topk_length, args.kv.shape[0], token);
  const int shift = shift_of(args, sums);
  f32 d_q[T::kMostParts][T::kHeads / 2];
#pragma unroll
  for (auto& part : d_q) {
#pragma unroll
    for (f32& value : part) value = 0.0f;
  }
  load_heads<T>(args, sums, token, first_head, smem);
  for (int tile = 0; tile < chosen.tiles(); ++tile) {
    for (int line = threadIdx.x / 8; line < T::kTile; line += T::kAll / 8)
      start_loading_key<T::kParts>(args.kv, chosen.at(tile * T::kTile + line), smem.keys, line, threadIdx.x % 8);
    ptx::cp_async_commit_group();
    const int keys[] = {chosen.at(tile * T::kTile + me.row), chosen.at(tile * T::kTile + me.row + 8)};
    ptx::cp_async_wait_group<0>();
    ptx::fence_proxy_async_shared();  // each thread's copies, for wgmma
    __syncthreads();
    if (me.warpgroup < 2) make_d_scores<T>(args, smem, keys, me);
    ptx::fence_proxy_async_shared();
    __syncthreads();
#pragma unroll
    for (int b = 0; b < T::kMostParts; ++b) {
      const int part = T::kMostParts * me.warpgroup + b;
      f32 d_kv[32];
      if (b < T::kMostParts - 1 || part < T::kValueParts) {
        multiply_back<true, T>(d_q[b], d_kv, smem, part, tile == 0);
      } else if constexpr (T::kParts > T::kValueParts) {
        multiply_back<false, T>(d_q[b], d_kv, smem, part, tile == 0);
      } else {
        break;
      }
      add_to_sums(sums, d_kv, keys, part, shift, me);
    }
    __syncthreads();  // all have read the tile, ds and W, which the next turn overwrites
  }
  // By way of the keys.
  u8* staging = smem.keys[0][0];
  static_assert(T::kHeads * 2 * T::kQkDim <= sizeof(smem.keys));
  ptx::cp_async_wait_group<0>();  // without a tile the queries may still be on their way
#pragma unroll
  for (int b = 0; b < T::kMostParts; ++b) {
    const int part = T::kMostParts * me.warpgroup + b;
    if (part < T::kParts) stage_dims<T::kHeads, 2 * T::kQkDim>(d_q[b], part, staging, me);
  }
  __syncthreads();
  const int heads = static_cast<int>(smaller(T::kHeads, args.q.shape[1] - first_head));
  store_lines<2 * T::kQkDim>(staging, args.d_q.at(token, first_head, 0), args.d_q.stride[1], heads, T::kAll);
}

template <class T>
__global__ __launch_bounds__(T::kAll, 1)
void sparse_mla_attention_bwd_kernel(const __grid_constant__ Args args, Sums sums) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<Storage<T>*>(smem_base);
  differentiate<T>(args, sums, blockIdx.x, i64{blockIdx.y} * T::kHeads, smem);
}

// A block per key.
__global__ void finish_kernel(const __grid_constant__ Args args, Sums sums) {
  const i64 key = blockIdx.x;
  const f64 unit = power_of_two(-shift_of(args, sums));
  for (i64 i = threadIdx.x; i < sums.dim; i += blockDim.x) {
    const f64 sum = static_cast<f64>(static_cast<long long>(sums.sums[key * sums.dim + i]));
    const f32 value = sums.marks[key] != 0 ? f32_of_bits(0x7fc00000) : static_cast<f32>(sum * unit);
    *args.d_kv.at(key, i) = to_bf16(value);
  }
}

dim3 blocks_of(i64 count) { return dim3(static_cast<unsigned>(count)); }

template <int kHeads, int kQkDim>
void launch_products(const Args& args, const Sums& sums, const Device& device, void* stream) {
  using T = Tile<kHeads, kQkDim>;
  constexpr int kBytes = static_cast<int>(sizeof(Storage<T>));
  static_assert(kBytes <= kMaxSmemBytes);
  const dim3 blocks(static_cast<unsigned>(args.q.shape[0]), static_cast<unsigned>(ceil_div(args.q.shape[1], kHeads)));
  launch<sparse_mla_attention_bwd_kernel<T>>(kOp, device, {.blocks = blocks, .threads = T::kAll, .smem_bytes = kBytes},
                                             stream, args, sums);
}

template <int kQkDim>
void launch_for_heads(const Args& args, const Sums& sums, const Device& device, void* stream) {
  const i64 heads = args.q.shape[1];
  if (heads <= 16) return launch_products<16, kQkDim>(args, sums, device, stream);
  if (heads <= 32) return launch_products<32, kQkDim>(args, sums, device, stream);
  launch_products<64, kQkDim>(args, sums, device, stream);
}

}  // namespace

void sparse_mla_attention_bwd_cuda(const Args& args, void* stream) {
  const i64 tokens = args.q.shape[0], heads = args.q.shape[1], keys = args.kv.shape[0];
  sparse_mla::check_limits(kOp, args.q, args.kv, args.out.shape[2]);
  const i64 needed = sparse_mla_attention_bwd_cuda_workspace_bytes(tokens, heads, args.q.shape[2], args.out.shape[2],
                                                                   args.indices.shape[1], keys);
  require(args.workspace.shape[0] >= needed, kOp, ": workspace must be u8[", needed, "] or longer on CUDA; got u8[",
          args.workspace.shape[0], "]");
  const Device device = require_sm90(kOp);
  const Sums sums(args);
  check(cudaMemsetAsync(sums.sums, 0, sums.bytes_to_clear(), static_cast<cudaStream_t>(stream)), kOp,
        "clearing the sums");
  if (tokens > 0 && heads > 0) {
    launch<count_kernel>(kOp, device, {.blocks = blocks_of(tokens), .threads = 256}, stream, args, sums);
    if (keys > 0)
      launch<keys_kernel>(kOp, device, {.blocks = blocks_of(ceil_div(keys, 4)), .threads = 128}, stream, args, sums);
    launch<heads_kernel>(kOp, device, {.blocks = blocks_of(ceil_div(tokens * heads, 4)), .threads = 128}, stream, args,
                         sums);
    if (args.q.shape[2] == 576)
      launch_for_heads<576>(args, sums, device, stream);
    else
      launch_for_heads<512>(args, sums, device, stream);
  }
  if (args.sink.exists() && heads > 0)
    launch<sink_kernel>(kOp, device, {.blocks = blocks_of(heads), .threads = 256}, stream, args, sums);
  if (keys > 0) launch<finish_kernel>(kOp, device, {.blocks = blocks_of(keys), .threads = 128}, stream, args, sums);
}

}  // namespace glm5
