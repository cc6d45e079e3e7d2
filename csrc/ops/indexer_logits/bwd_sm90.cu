// The gradient of indexer_logits on sm_90a (the products: cuda/indexer_token_bwd.cuh), in two passes that each compute
// d anew, so that nothing is added across blocks: no atomics, no scratch in memory.
//
//   queries  a block has one token and walks through the tiles of its window: d_weights, and d_q, whose part of 64 keys
//            leaves the tensor core before it is added. Keys outside the window are zeros.
//   keys     a block has one tile of 64 keys and walks through the tokens whose windows reach it: d_k, to which a
//            token's part is added where the key is in its window. While one token is multiplied the next one's queries
//            are on their way, and its weights and gradients in registers. The first tiles, which causal windows give
//            the most tokens, start first.
//
// Calculated per token and tile of 64 keys with 32 heads, not measured: 1.6 MFLOP in each pass (a counts twice), 0.26
// us of one SM's tensor core at 6 TFLOP/s. The first pass reads 16 KiB from the L2 for it, which 132 SMs have in 0.39
// us at 5.5 TB/s, the second 8 KiB: they are bound by the L2 and by the tensor core; 0.65 us of one SM together.
#include "cuda/indexer_token_bwd.cuh"
#include "ops/indexer_logits/indexer_logits.h"

namespace glm5::indexer_logits_bwd_sm90 {
namespace {

using namespace indexer_token;

constexpr const char* kOp = "indexer_logits_bwd";

// Cut to the keys; an empty one is [0, 0).
struct Window {
  i64 start, end;

  __device__ __forceinline__ Window(const IndexerOperands& operands, i64 token)
      : start(max(__ldg(operands.windows.at(token, 0)), 0)),
        end(min(i64{__ldg(operands.windows.at(token, 1))}, operands.k.shape[0])) {
    if (end <= start) start = end = 0;
  }
  __device__ __forceinline__ bool has(i64 key) const { return start <= key && key < end; }
};

__device__ __forceinline__ f32 gradient_of(const IndexerLogitsBwdArgs& args, i64 token, i64 key) {
  const f32 d_out = __ldg(args.d_out.at(token, key));
  return args.operands.q.is_e4m3 ? __fmul_rn(d_out, __ldg(args.operands.k_scales.at(key))) : d_out;
}

// ---- Pass 1 ----

template <class C>
struct QueryStorage {
  Rows<C> queries, keys[2];
  Gated a;
  alignas(16) f32 d_weights[4][C::kHeads];
};

// total += keys^T a^T.
template <class C>
__device__ __forceinline__ void add_to_d_q(f32 (&total)[2][C::kHeads / 2], const Gated& a, const Rows<C>& keys) {
  f32 part[2][C::kHeads / 2];
  ptx::pin(part[0]);
  ptx::pin(part[1]);
  ptx::wgmma_fence();
  multiply_by_keys<C>(part, a, keys, false);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(part[0]);
  ptx::pin(part[1]);
#pragma unroll
  for (int i = 0; i < C::kHeads; ++i) {
    f32& sum = total[i / (C::kHeads / 2)][i % (C::kHeads / 2)];
    sum = __fadd_rn(sum, part[i / (C::kHeads / 2)][i % (C::kHeads / 2)]);
  }
}

template <class C, class Element>
__device__ __forceinline__ void load_tile(const IndexerOperands& operands, const Window& window, i64 first,
                                          Rows<C>& to) {
  load_keys<C, Element>(operands, to, [&](int row) { return window.has(first + row) ? first + row : i64{-1}; });
  ptx::cp_async_commit_group();
}

template <class C, class Element>
__global__ __launch_bounds__(C::kThreads) void indexer_logits_bwd_queries_kernel(
    const __grid_constant__ IndexerLogitsBwdArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<QueryStorage<C>*>(smem_base);
  const IndexerOperands& operands = args.operands;
  const i64 token = blockIdx.x;
  const Window window(operands, token);
  const Lane me;
  f32 weights[C::kHeads / 4], chains[C::kHeads / 4] = {}, d_q[2][C::kHeads / 2] = {};
  load_weights<C>(weights, operands, token, me);
  load_queries<C, Element>(operands, token, smem.queries);
  i64 first = window.start / C::kTile * C::kTile;
  load_tile<C, Element>(operands, window, first, smem.keys[0]);
  for (int stage = 0; first < window.end; first += C::kTile, stage ^= 1) {
    if (first + C::kTile < window.end) {
      load_tile<C, Element>(operands, window, first + C::kTile, smem.keys[stage ^ 1]);
      ptx::cp_async_wait_group<1>();
    } else {
      ptx::cp_async_wait_group<0>();
    }
    ptx::fence_proxy_async_shared();  // each thread's copies, for wgmma
    __syncthreads();
    bool counts[2];
    f32 g[2], products[C::kHeads / 2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const i64 key = first + me.row + 8 * r;
      counts[r] = window.has(key);
      g[r] = counts[r] ? gradient_of(args, token, key) : 0.0f;
    }
    multiply<C>(products, smem.keys[stage], smem.queries);
    add_to_chains<C>(chains, products, g, counts);
    if constexpr (!C::kE4m3) {
      gate<C>(smem.a, products, weights, g, me);
      ptx::fence_proxy_async_shared();  // a, for wgmma
      __syncthreads();
      add_to_d_q<C>(d_q, smem.a, smem.keys[stage]);
    }
    // The next turn overwrites what wgmma alone has read here. Each warp has waited for it, and it is the warpgroup's:
    // no wait returns before the products of all four warps are done.
  }
  ptx::cp_async_wait_group<0>();
  if constexpr (!C::kE4m3) store_d_q<C>(args.d_q, token, d_q, me);
  store_d_weights<C>(args.d_weights, token, chains, smem.d_weights, me);
}

// ---- Pass 2: bf16 ----

template <class C>
struct KeyStorage {
  Rows<C> keys, queries[2];
  Gated a;
};

// The tokens whose windows reach a tile, ascending; 32 are looked at together. Every warp finds the same.
struct TokenSearch {
  const IndexerOperands& operands;
  i64 first_key, last_key, base = -32;
  u32 found = 0;

  // -1: there is none left.
  __device__ __forceinline__ i64 next() {
    while (found == 0) {
      base += 32;
      if (base >= operands.q.shape[0]) return -1;
      const i64 token = base + threadIdx.x % 32;
      bool reaches = token < operands.q.shape[0];
      if (reaches) {
        const Window window(operands, token);
        reaches = window.start < last_key && window.end > first_key;
      }
      found = __ballot_sync(0xffffffff, reaches);
    }
    const i64 token = base + __ffs(found) - 1;
    found &= found - 1;
    return token;
  }
};

// What a token and this thread's two keys bring beside the products.
template <class C>
struct Factors {
  f32 weights[C::kHeads / 4], g[2];
  bool counts[2];

  __device__ __forceinline__ void load(const IndexerLogitsBwdArgs& args, i64 token, i64 first_key, const Lane& me) {
    const Window window(args.operands, token);
    load_weights<C>(weights, args.operands, token, me);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const i64 key = first_key + me.row + 8 * r;
      counts[r] = window.has(key);
      g[r] = counts[r] ? gradient_of(args, token, key) : 0.0f;
    }
  }
};

// total += a^T queries, for the keys that count: a query that holds NaN reaches no others.
template <class C>
__device__ __forceinline__ void add_to_d_k(f32 (&total)[64], const Gated& a, const Rows<C>& queries,
                                           const bool (&counts)[2]) {
  f32 part[64];
  ptx::pin(part);
  ptx::wgmma_fence();
  multiply_by_queries<C>(part, a, queries);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::pin(part);
#pragma unroll
  for (int i = 0; i < 64; ++i) total[i] = counts[i / 2 % 2] ? __fadd_rn(total[i], part[i]) : total[i];
}

template <class C>
__global__ __launch_bounds__(C::kThreads) void indexer_logits_bwd_keys_kernel(
    const __grid_constant__ IndexerLogitsBwdArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<KeyStorage<C>*>(smem_base);
  const IndexerOperands& operands = args.operands;
  const i64 keys = operands.k.shape[0], first = i64{blockIdx.x} * C::kTile;
  const Lane me;
  f32 d_k[64] = {};
  TokenSearch search{operands, first, first + C::kTile};
  i64 token = search.next();
  Factors<C> here, ahead;
  if (token >= 0) {
    here.load(args, token, first, me);
    load_keys<C, bf16>(operands, smem.keys, [&](int row) { return first + row < keys ? first + row : i64{-1}; });
    load_queries<C, bf16>(operands, token, smem.queries[0]);
    ptx::cp_async_commit_group();
  }
  for (int stage = 0; token >= 0; stage ^= 1, here = ahead) {
    token = search.next();
    if (token >= 0) {
      load_queries<C, bf16>(operands, token, smem.queries[stage ^ 1]);
      ptx::cp_async_commit_group();
      ahead.load(args, token, first, me);
      ptx::cp_async_wait_group<1>();
    } else {
      ptx::cp_async_wait_group<0>();
    }
    ptx::fence_proxy_async_shared();  // each thread's copies, for wgmma
    __syncthreads();
    f32 products[C::kHeads / 2];
    multiply<C>(products, smem.keys, smem.queries[stage]);
    gate<C>(smem.a, products, here.weights, here.g, me);
    ptx::fence_proxy_async_shared();  // a, for wgmma
    __syncthreads();
    add_to_d_k<C>(d_k, smem.a, smem.queries[stage], here.counts);
    // The next turn may overwrite the queries and a: only wgmma has read them, and it is waited for, as above.
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    const i64 key = first + me.row + i / 2 % 2 * 8;
    if (key < keys) *args.d_k.at(key, i / 4 * 8 + 2 * me.quad + i % 2) = to_bf16(d_k[i]);
  }
}

template <class Element, int kHeads>
void launch_queries(const IndexerLogitsBwdArgs& args, const cuda::Device& device, void* stream) {
  using C = Config<Element, kHeads>;
  const dim3 tokens(static_cast<unsigned>(args.operands.q.shape[0]));
  constexpr int kBytes = static_cast<int>(sizeof(QueryStorage<C>));
  cuda::launch<indexer_logits_bwd_queries_kernel<C, Element>>(
      kOp, device, {.blocks = tokens, .threads = C::kThreads, .smem_bytes = kBytes}, stream, args);
}

template <int kHeads>
void launch_keys(const IndexerLogitsBwdArgs& args, const cuda::Device& device, void* stream) {
  using C = Config<bf16, kHeads>;
  const dim3 tiles(static_cast<unsigned>(ceil_div(args.operands.k.shape[0], C::kTile)));
  constexpr int kBytes = static_cast<int>(sizeof(KeyStorage<C>));
  cuda::launch<indexer_logits_bwd_keys_kernel<C>>(
      kOp, device, {.blocks = tiles, .threads = C::kThreads, .smem_bytes = kBytes}, stream, args);
}

}  // namespace
}  // namespace glm5::indexer_logits_bwd_sm90

namespace glm5 {

void indexer_logits_bwd_cuda(const IndexerLogitsBwdArgs& args, void* stream) {
  using namespace indexer_logits_bwd_sm90;
  const IndexerOperands& operands = args.operands;
  indexer_token::check_limits(operands, kOp);
  const i64 tokens = operands.q.shape[0], keys = operands.k.shape[0];
  const bool few = operands.q.shape[1] == 32;
  if (tokens == 0 && (keys == 0 || operands.q.is_e4m3)) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  if (operands.q.is_e4m3) {
    return few ? launch_queries<e4m3, 32>(args, device, stream) : launch_queries<e4m3, 64>(args, device, stream);
  }
  if (tokens > 0) few ? launch_queries<bf16, 32>(args, device, stream) : launch_queries<bf16, 64>(args, device, stream);
  if (keys > 0) few ? launch_keys<32>(args, device, stream) : launch_keys<64>(args, device, stream);
}

}  // namespace glm5
