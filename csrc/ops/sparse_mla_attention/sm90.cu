// sparse_mla_attention on sm_90a. The tree differs from the CPU's: tiles of 64 places, with a maximum that grows from
// tile to tile.
//
//   s      = (q . kv) * (scale * log2 e), products by wgmma
//   m      = the largest s so far; where it grows, by a factor f = 2^(m_before - m), l and o are multiplied by f
//   l      = 32 chains: places i and i + 8 (mod 16) of the 16 that a warp has, then over tiles; at the end the eight
//            lanes of a head in a butterfly and the four warps in order
//   o     += bf16(2^(s - m)) v by wgmma
//   out    = bf16(o * (factor / l)); lse = (m + log2 l) * ln 2
//   probabilities: the scores once more, by a second kernel that knows lse. A chain over the heads of a lane ascending,
//            the four lanes of a key in a butterfly, the two warpgroups, then groups of heads ascending
//
// A token's bits do not depend on the batch, nor a head's on the other heads.
#include "cuda/launch.h"
#include "cuda/sparse_mla.cuh"
#include "ops/sparse_mla_attention/limits_sm90.h"

namespace glm5 {
namespace {

using namespace cuda;

constexpr const char* kOp = "sparse_mla_attention";

// At the end: lse, and in smem.factors what the output of a head is multiplied by.
template <class T>
__device__ __forceinline__ void finish_softmax(const SparseMlaSoftmax<T>& softmax, const SparseMlaAttentionArgs& args,
                                               i64 token, i64 first_head, SparseMlaStorage<T>& smem,
                                               const SparseMlaLane& me) {
#pragma unroll
  for (int h = 0; h < T::kOwn; ++h) {
    f32 sum = softmax.sum[h];
#pragma unroll
    for (int distance = 4; distance < 32; distance *= 2)
      sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffff, sum, distance));
    if (me.lane < 4) smem.partial[me.warpgroup][me.warp][me.head(h)] = sum;
  }
  sync_math<T>();
  if (me.warp == 0 && me.lane < 4) {
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) {
      const int own = me.head(h), head = me.warpgroup * T::kHalf + own;
      f32 sum = smem.partial[me.warpgroup][0][own];
#pragma unroll
      for (int warp = 1; warp < 4; ++warp) sum = __fadd_rn(sum, smem.partial[me.warpgroup][warp][own]);
      const f32 lse = __fmul_rn(__fadd_rn(softmax.largest[h], log2f(sum)), kLn2);
      const bool exists = first_head + head < args.q.shape[1];
      const f32 sink = exists && args.sink.exists() ? __ldg(args.sink.at(first_head + head)) : -__builtin_inff();
      const f32 share = args.sink.exists() ? __fdiv_rn(1.0f, __fadd_rn(1.0f, expf(__fsub_rn(sink, lse)))) : 1.0f;
      smem.factors[head] = sum == 0.0f ? 0.0f : __fdiv_rn(share, sum);
      if (exists) *args.lse.at(token, first_head + head) = lse;
    }
  }
  sync_math<T>();
}

template <class T>
__device__ __forceinline__ void attend(const SparseMlaAttentionArgs& args, const ChosenKeys& chosen, i64 token,
                                       i64 first_head, SparseMlaStorage<T>& smem) {
  const SparseMlaLane me;
  const f32 scale_log2 = __fmul_rn(args.scale, kLog2E);
  load_queries<T>(args.q, token, first_head, smem);
  SparseMlaSoftmax<T> softmax;
  SparseMlaOutput<T> out;
#pragma unroll
  for (auto& block : out) {
#pragma unroll
    for (f32& value : block) value = 0.0f;
  }
  RingPosition<T::kStages> at;
  for (int tile = 0; tile < chosen.tiles(); ++tile, at.advance()) {
    const bool first = chosen.at(tile * T::kTile + me.row) >= 0, second = chosen.at(tile * T::kTile + me.row + 8) >= 0;
    smem.ring.wait_full(at);
    ptx::fence_proxy_async_shared();  // the loader's copies, for wgmma
    f32 scores[T::kHalf / 2];
    multiply_scores<T>(scores, smem, at.stage, me.warpgroup);
    scale_scores<T>(scores, scale_log2, first, second);
    softmax.publish_largest(scores, smem, me);
    sync_math<T>();  // now both have read the rotated dims, too
    softmax.advance(scores, smem, me);
    store_by_head<T::kHalf>(scores, smem.probabilities(at.stage) + me.warpgroup * T::kHalf * 128, me);
    ptx::fence_proxy_async_shared();
    sync_math<T>();
    if (tile != 0) rescale<T>(out, smem, me);
    add_values<T>(out, smem, at.stage, me.warpgroup, tile == 0);
    smem.ring.template release<1>(at, me.lane);
  }
  finish_softmax<T>(softmax, args, token, first_head, smem, me);
  rescale<T>(out, smem, me);
  // By way of the first stage.
  u8* staging = smem.keys[0][0][0];
  static_assert(T::kHeads * 2 * T::kVDim <= sizeof(smem.keys[0]));
#pragma unroll
  for (int b = 0; b < T::kValueParts / 2; ++b)
    stage_dims<T::kHeads, 2 * T::kVDim>(out[b], me.warpgroup * (T::kValueParts / 2) + b, staging, me);
  sync_math<T>();
  const int heads = static_cast<int>(smaller(T::kHeads, args.q.shape[1] - first_head));
  store_lines<2 * T::kVDim>(staging, args.out.at(token, first_head, 0), args.out.stride[1], heads, T::kMathThreads);
}

__device__ __forceinline__ ChosenKeys chosen_keys(const SparseMlaAttentionArgs& args, i64 token) {
  if (!args.is_paged) return ChosenKeys(args.indices, args.topk_length, args.kv.shape[0], token);
  return ChosenKeys(args.indices, args.topk_length, args.cache.slots(), args.block_table, args.sequences, token);
}

// kDecodes: keys are those of a cache of bytes; otherwise the rows of kv.
template <class T, bool kDecodes>
__global__ __launch_bounds__(T::kThreads, 1)
void sparse_mla_attention_kernel(const __grid_constant__ SparseMlaAttentionArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<SparseMlaStorage<T>*>(smem_base);
  const i64 token = blockIdx.x, first_head = i64{blockIdx.y} * T::kHeads;
  if (threadIdx.x == 0) {
    smem.ring.init(T::kLoaders, T::kMathThreads / 32);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const ChosenKeys chosen = chosen_keys(args, token);
  if (threadIdx.x >= T::kMathThreads) {
    ptx::setmaxnreg_dec<T::kLoaderRegisters>();
    RingPosition<T::kStages> at;
    if constexpr (kDecodes)
      load_cached_keys<T>(chosen, args.cache, smem, at);
    else
      load_keys<T>(chosen, args.kv, smem, at, 0, chosen.tiles());
  } else {
    ptx::setmaxnreg_inc<T::kMathRegisters>();
    attend<T>(args, chosen, token, first_head, smem);
  }
}

// By both warpgroups: the sums over a group's heads, added to those of the groups before it.
template <class T>
__device__ __forceinline__ void sum_probabilities(const SparseMlaAttentionArgs& args, const ChosenKeys& chosen,
                                                  i64 token, i64 first_head, SparseMlaStorage<T>& smem,
                                                  RingPosition<T::kStages>& at) {
  const SparseMlaLane me;
  const f32 scale_log2 = __fmul_rn(args.scale, kLog2E);
  load_queries<T>(args.q, token, first_head, smem);
  f32 lse_log2[T::kOwn];
#pragma unroll
  for (int h = 0; h < T::kOwn; ++h) {
    const i64 head = first_head + me.warpgroup * T::kHalf + me.head(h);
    lse_log2[h] = head < args.q.shape[1] ? __fmul_rn(*args.lse.at(token, head), kLog2E) : __builtin_inff();
  }
  f32* other = smem.partial[0][0];  // sums of the second warpgroup, of 64 keys
  static_assert(sizeof(smem.partial) >= T::kTile * sizeof(f32));
  for (int tile = 0; tile < chosen.tiles(); ++tile, at.advance()) {
    smem.ring.wait_full(at);
    ptx::fence_proxy_async_shared();
    f32 scores[T::kHalf / 2];
    multiply_scores<T>(scores, smem, at.stage, me.warpgroup);
    smem.ring.template release<1>(at, me.lane);
    f32 sums[2] = {};
#pragma unroll
    for (int h = 0; h < T::kOwn; ++h) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const f32 score = __fmul_rn(scores[4 * (h / 2) + h % 2 + 2 * r], scale_log2);
        sums[r] = __fadd_rn(sums[r], ptx::ex2_approx_ftz(__fsub_rn(score, lse_log2[h])));
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffff, sums[r], 1));
      sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffff, sums[r], 2));
    }
    const int row = me.row + 8 * me.quad, place = tile * T::kTile + row;  // lanes 0 and 1 of four have one each
    if (me.warpgroup == 1 && me.quad < 2) other[row] = me.quad == 0 ? sums[0] : sums[1];
    sync_math<T>();
    if (me.warpgroup == 0 && me.quad < 2 && place < args.probabilities.shape[1]) {
      f32* to = args.probabilities.at(token, place);
      const f32 sum = __fadd_rn(me.quad == 0 ? sums[0] : sums[1], other[row]);
      *to = chosen.at(place) < 0 ? 0.0f : first_head == 0 ? sum : __fadd_rn(*to, sum);
    }
    sync_math<T>();
  }
}

template <class T>
__global__ __launch_bounds__(T::kThreads, 1)
void sparse_mla_probabilities_kernel(const __grid_constant__ SparseMlaAttentionArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<SparseMlaStorage<T>*>(smem_base);
  const i64 token = blockIdx.x, heads = args.q.shape[1];
  if (threadIdx.x == 0) {
    smem.ring.init(T::kLoaders, T::kMathThreads / 32);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  const ChosenKeys chosen = chosen_keys(args, token);
  RingPosition<T::kStages> at;
  if (threadIdx.x >= T::kMathThreads) {
    for (i64 first = 0; first < heads; first += T::kHeads) load_keys<T>(chosen, args.kv, smem, at, 0, chosen.tiles());
    return;
  }
  for (i64 place = chosen.tiles() * T::kTile + threadIdx.x; place < args.probabilities.shape[1];
       place += T::kMathThreads)
    *args.probabilities.at(token, place) = 0.0f;
  for (i64 first = 0; first < heads; first += T::kHeads) sum_probabilities<T>(args, chosen, token, first, smem, at);
}

template <int kHeads, int kQkDim, bool kDecodes = false>
void launch_attention(const SparseMlaAttentionArgs& args, const Device& device, void* stream) {
  using T = SparseMlaTile<kHeads, kQkDim>;
  constexpr int kBytes = static_cast<int>(sizeof(SparseMlaStorage<T>));
  static_assert(kBytes <= kMaxSmemBytes);
  const dim3 blocks(static_cast<unsigned>(args.q.shape[0]), static_cast<unsigned>(ceil_div(args.q.shape[1], kHeads)));
  launch<sparse_mla_attention_kernel<T, kDecodes>>(
      kOp, device, {.blocks = blocks, .threads = T::kThreads, .smem_bytes = kBytes},
                                         stream, args);
  if (args.probabilities.shape[0] == 0 || args.probabilities.shape[1] == 0) return;
  launch<sparse_mla_probabilities_kernel<T>>(
      kOp, device, {.blocks = dim3(blocks.x), .threads = T::kThreads, .smem_bytes = kBytes}, stream, args);
}

template <int kQkDim, bool kDecodes = false>
void launch_for_heads(const SparseMlaAttentionArgs& args, const Device& device, void* stream) {
  const i64 heads = args.q.shape[1];
  if (heads <= 16) return launch_attention<16, kQkDim, kDecodes>(args, device, stream);
  if (heads <= 32) return launch_attention<32, kQkDim, kDecodes>(args, device, stream);
  launch_attention<64, kQkDim, kDecodes>(args, device, stream);
}

}  // namespace

void sparse_mla_attention_cuda(const SparseMlaAttentionArgs& given, void* stream) {
  SparseMlaAttentionArgs args = given;
  const char* op = args.is_paged ? "sparse_mla_decode" : kOp;
  const bool decodes = args.cache.bytes.exists();
  if (args.is_paged && !decodes) args.kv = sparse_mla::rows_of(args.cache.values);
  sparse_mla::check_limits(op, args.q, args.kv, args.out.shape[2]);
  sparse_mla::check_cache_limits(op, args.cache);
  if (args.q.shape[0] == 0 || args.q.shape[1] == 0) return;
  const Device device = require_sm90(op);
  if (decodes) return launch_for_heads<576, true>(args, device, stream);
  if (args.q.shape[2] == 576) return launch_for_heads<576>(args, device, stream);
  launch_for_heads<512>(args, device, stream);
}

}  // namespace glm5
