// The gradient of indexer_logits_at on sm_90a: one warpgroup per token, three products for every 64 places
// (cuda/indexer_token_bwd.cuh). d_q stays in registers over all tiles; d_k is added to the sums of the keys.
//
// d_k is summed in fixed point (cuda/fixed_point.cuh), whose additions have no order that could be seen. The unit is as
// small as the largest |g|, |w| and |q| allow without an overflow of tokens x topk contributions: with 2^30 of these at
// most 2^-30 of the largest possible one. Contributions that are not finite mark their key, whose gradient is then NaN.
//
// Calculated per token with 2048 keys and 32 heads, not measured: 84 MFLOP (a counts twice), 14 us of one SM's tensor
// core at 6 TFLOP/s, 0.11 us of all; 2 MiB of 64-bit reductions in the L2, 0.9 us at 2.4 TB/s. It is bound by these.
#include "cuda/fixed_point.cuh"
#include "cuda/indexer_token_bwd.cuh"
#include "ops/indexer_logits_at/places_sm90.cuh"

namespace glm5::at_sm90 {
namespace {

constexpr const char* kOp = "indexer_logits_at_bwd";
constexpr int kDim = 128;

// The workspace on CUDA. maxima: bits of the largest finite |d_out|, |weights| and |q|.
struct Sums {
  unsigned long long* sums;  // [keys, 128]
  u32* marks;                // [keys]
  u32* maxima;               // [3]
  i64 words;                 // of 32 bits, all of them

  __host__ Sums(const Tensor<u8, 1>& workspace, i64 keys)
      : sums(reinterpret_cast<unsigned long long*>(workspace.data)),
        marks(reinterpret_cast<u32*>(workspace.data + keys * kDim * 8)),
        maxima(marks + keys),
        words(keys * (2 * kDim + 1) + 3) {}
};

__global__ void clear_kernel(Sums to) {
  u32* words = reinterpret_cast<u32*>(to.sums);
  for (i64 i = i64{blockIdx.x} * blockDim.x + threadIdx.x; i < to.words; i += i64{gridDim.x} * blockDim.x) words[i] = 0;
}

// A block per token.
__global__ void maxima_kernel(const __grid_constant__ IndexerLogitsAtBwdArgs args, Sums to) {
  const i64 token = blockIdx.x, heads = args.operands.q.shape[1];
  const auto q = args.operands.q.as<bf16>();
  u32 grad = 0, weight = 0, query = 0;
  for (i64 j = threadIdx.x; j < args.indices.shape[1]; j += blockDim.x)
    grad = max(grad, cuda::finite_magnitude(__ldg(args.d_out.at(token, j))));
  for (i64 h = threadIdx.x; h < heads; h += blockDim.x)
    weight = max(weight, cuda::finite_magnitude(__ldg(args.operands.weights.at(token, h))));
  for (i64 i = threadIdx.x; i < heads * kDim; i += blockDim.x)
    query = max(query, cuda::finite_magnitude(to_f32(*q.at(token, i / kDim, i % kDim))));
  cuda::keep_largest(&to.maxima[0], grad);
  cuda::keep_largest(&to.maxima[1], weight);
  cuda::keep_largest(&to.maxima[2], query);
}

// |d_k| cannot be greater than heads contributions of every place; twice that, for roundings.
__device__ __forceinline__ int shift_of(const Sums& sums, i64 places, int heads) {
  f64 bound = 2.0 * heads * static_cast<f64>(places);
#pragma unroll
  for (int i = 0; i < 3; ++i) bound *= f32_of_bits(sums.maxima[i]);
  return cuda::fixed_point_shift(bound);
}

template <class C>
struct Storage {
  Tiles<C> tiles;
  Gated a;
  alignas(16) f32 d_weights[4][C::kHeads];
};

// d_q^T += k^T a^T and d_k = a^T q for a tile; waits for both.
template <class C>
__device__ __forceinline__ void multiply_back(f32 (&d_q)[2][C::kHeads / 2], f32 (&d_k)[64], const Storage<C>& smem,
                                              int stage, bool is_first) {
  ptx::pin(d_q[0]);
  ptx::pin(d_q[1]);
  ptx::pin(d_k);
  ptx::wgmma_fence();
  multiply_by_keys<C>(d_q, smem.a, smem.tiles.keys[stage], !is_first);
  multiply_by_queries<C>(d_k, smem.a, smem.tiles.queries);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(d_q[0]);
  ptx::pin(d_q[1]);
  ptx::pin(d_k);
}

__device__ __forceinline__ void add_to_sums(const Sums& to, const f32 (&d_k)[64], const i64 (&keys)[2], int shift,
                                            const Lane& me) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (keys[r] < 0) continue;
    bool is_finite_row = true;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const f32 value = d_k[i / 2 * 4 + 2 * r + i % 2];
      is_finite_row &= is_finite(value);
      cuda::add_fixed_point(&to.sums[keys[r] * kDim + i / 2 * 8 + 2 * me.quad + i % 2], value, shift);
    }
    if (!is_finite_row) atomicOr(&to.marks[keys[r]], 1u);
  }
}

template <class C, class Element>
__global__ __launch_bounds__(C::kThreads) void indexer_logits_at_bwd_kernel(
    const __grid_constant__ IndexerLogitsAtBwdArgs args, Sums sums) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<Storage<C>*>(smem_base);
  const IndexerOperands& operands = args.operands;
  const i64 token = blockIdx.x, topk = args.indices.shape[1], keys = operands.k.shape[0];
  const Lane me;
  f32 weights[C::kHeads / 4], chains[C::kHeads / 4] = {}, d_q[2][C::kHeads / 2] = {};
  int shift = 0;
  if constexpr (!C::kE4m3) shift = shift_of(sums, args.indices.shape[0] * topk, C::kHeads);
  load_weights<C>(weights, operands, token, me);
  load_queries<C, Element>(operands, token, smem.tiles.queries);
  load_places<C, Element>(operands, args.indices, token, 0, smem.tiles.keys[0]);
  int stage = 0;
  for (i64 first = 0; first < topk; first += C::kTile, stage ^= 1) {
    if (first + C::kTile < topk) {
      load_places<C, Element>(operands, args.indices, token, first + C::kTile, smem.tiles.keys[stage ^ 1]);
      ptx::cp_async_wait_group<1>();
    } else {
      ptx::cp_async_wait_group<0>();
    }
    ptx::fence_proxy_async_shared();  // each thread's copies, for wgmma
    __syncthreads();
    i64 own[2];
    f32 g[2], products[C::kHeads / 2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const i64 place = first + me.row + 8 * r;
      own[r] = key_of(args.indices, keys, token, place);
      g[r] = own[r] < 0 ? 0.0f : __ldg(args.d_out.at(token, place));
      if (C::kE4m3 && own[r] >= 0) g[r] = __fmul_rn(g[r], __ldg(operands.k_scales.at(own[r])));
    }
    multiply<C>(products, smem.tiles.keys[stage], smem.tiles.queries);
    add_to_chains<C>(chains, products, g, {own[0] >= 0, own[1] >= 0});
    if constexpr (!C::kE4m3) {
      gate<C>(smem.a, products, weights, g, me);
      ptx::fence_proxy_async_shared();  // a, for wgmma
      __syncthreads();
      f32 d_k[64];
      multiply_back<C>(d_q, d_k, smem, stage, first == 0);
      add_to_sums(sums, d_k, own, shift, me);
    }
    __syncthreads();  // all have read the tile and a, which the next turn overwrites
  }
  if constexpr (!C::kE4m3) store_d_q<C>(args.d_q, token, d_q, me);
  store_d_weights<C>(args.d_weights, token, chains, smem.d_weights, me);
}

// A block per key.
__global__ void finish_kernel(const __grid_constant__ IndexerLogitsAtBwdArgs args, Sums sums) {
  const i64 key = blockIdx.x, tokens = args.indices.shape[0], topk = args.indices.shape[1];
  const int heads = static_cast<int>(args.operands.q.shape[1]);
  const f64 unit = cuda::power_of_two(-shift_of(sums, tokens * topk, heads));
  const f64 sum = static_cast<f64>(static_cast<long long>(sums.sums[key * kDim + threadIdx.x]));
  const f32 value = sums.marks[key] != 0 ? f32_of_bits(0x7fc00000) : static_cast<f32>(sum * unit);
  *args.d_k.at(key, threadIdx.x) = to_bf16(value);
}

template <class Element, int kHeads>
void launch_bwd(const IndexerLogitsAtBwdArgs& args, const Sums& sums, const cuda::Device& device, void* stream) {
  using C = Config<Element, kHeads>;
  constexpr int kBytes = static_cast<int>(sizeof(Storage<C>));
  const dim3 tokens(static_cast<unsigned>(args.indices.shape[0]));
  cuda::launch<indexer_logits_at_bwd_kernel<C, Element>>(
      kOp, device, {.blocks = tokens, .threads = C::kThreads, .smem_bytes = kBytes}, stream, args, sums);
}

}  // namespace
}  // namespace glm5::at_sm90

namespace glm5 {

void indexer_logits_at_bwd_cuda(const IndexerLogitsAtBwdArgs& args, void* stream) {
  using namespace at_sm90;
  const IndexerOperands& operands = args.operands;
  check_limits(operands, kOp);
  const i64 tokens = args.indices.shape[0], keys = operands.k.shape[0];
  const bool with_qk = !operands.q.is_e4m3, few = operands.q.shape[1] == 32;
  const i64 needed = with_qk ? indexer_logits_at_bwd_cuda_workspace_bytes(keys) : 0;
  require(args.workspace.shape[0] >= needed, kOp, ": workspace must be u8[", needed, "] or longer on CUDA; got u8[",
          args.workspace.shape[0], "]");
  if (tokens == 0 && keys == 0) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  const Sums sums(args.workspace, keys);
  if (!with_qk) {
    if (tokens == 0) return;
    return few ? launch_bwd<e4m3, 32>(args, sums, device, stream) : launch_bwd<e4m3, 64>(args, sums, device, stream);
  }
  const auto blocks = [](i64 count) { return dim3(static_cast<unsigned>(count)); };
  cuda::launch<clear_kernel>(kOp, device,
                             {.blocks = blocks(smaller(ceil_div(sums.words, 256), 8 * device.sms)), .threads = 256},
                             stream, sums);
  if (tokens > 0) {
    cuda::launch<maxima_kernel>(kOp, device, {.blocks = blocks(tokens), .threads = 128}, stream, args, sums);
    few ? launch_bwd<bf16, 32>(args, sums, device, stream) : launch_bwd<bf16, 64>(args, sums, device, stream);
  }
  if (keys > 0) cuda::launch<finish_kernel>(kOp, device, {.blocks = blocks(keys), .threads = 128}, stream, args, sums);
}

}  // namespace glm5
