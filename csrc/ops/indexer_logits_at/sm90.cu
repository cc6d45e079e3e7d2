// indexer_logits_at on sm_90a. While a tile of 64 keys is multiplied and scored, the next one is on its way; five or
// six blocks share an SM and hide what is left of each other's latency.
//
// Calculated per SM and tile of 64 keys, e4m3 and 32 heads, not measured: 64 clocks of tensor core, 8.25 KiB from the
// L2 at some 24 B per clock: 352 clocks. It is bound by the gather.
#include "ops/indexer_logits_at/places_sm90.cuh"

namespace glm5::at_sm90 {
namespace {

constexpr const char* kOp = "indexer_logits_at";

// The scores of rows `row` and row + 8, before their scale; every lane of the quad has both.
template <class C>
__device__ __forceinline__ void sum_heads(f32 (&sums)[2], const f32 (&products)[C::kHeads / 2],
                                          const f32 (&weights)[C::kHeads / 4]) {
  sums[0] = sums[1] = 0.0f;
#pragma unroll
  for (int group = 0; group < C::kHeads / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const f32 product = products[4 * group + i];
      sums[i / 2] = __fmaf_rn(weights[2 * group + i % 2], __fadd_rn(product, fabsf(product)), sums[i / 2]);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffff, sums[r], 1));
    sums[r] = __fadd_rn(sums[r], __shfl_xor_sync(0xffffffff, sums[r], 2));
  }
}

template <class C, class Element>
__global__ __launch_bounds__(C::kThreads) void indexer_logits_at_kernel(
    const __grid_constant__ IndexerLogitsAtArgs args) {
  extern __shared__ __align__(1024) u8 smem_base[];
  auto& smem = *reinterpret_cast<Tiles<C>*>(smem_base);
  const IndexerOperands& operands = args.operands;
  const i64 token = blockIdx.x, topk = args.indices.shape[1], keys = operands.k.shape[0];
  const Lane me;
  f32 weights[C::kHeads / 4];
  load_weights<C>(weights, operands, token, me);
  load_queries<C, Element>(operands, token, smem.queries);
  load_places<C, Element>(operands, args.indices, token, 0, smem.keys[0]);
  int stage = 0;
  for (i64 first = 0; first < topk; first += C::kTile, stage ^= 1) {
    if (first + C::kTile < topk) {
      load_places<C, Element>(operands, args.indices, token, first + C::kTile, smem.keys[stage ^ 1]);
      ptx::cp_async_wait_group<1>();
    } else {
      ptx::cp_async_wait_group<0>();
    }
    ptx::fence_proxy_async_shared();  // each thread's copies, for wgmma
    __syncthreads();
    f32 products[C::kHeads / 2], sums[2];
    multiply<C>(products, smem.keys[stage], smem.queries);
    sum_heads<C>(sums, products, weights);
    if (me.quad < 2) {
      const i64 place = first + me.row + 8 * me.quad;
      const i64 key = key_of(args.indices, keys, token, place);
      const f32 half_scale = C::kE4m3 && key >= 0 ? 0.5f * __ldg(operands.k_scales.at(key)) : 0.5f;
      const f32 score = __fmul_rn(me.quad == 0 ? sums[0] : sums[1], half_scale);
      if (place < topk) *args.out.at(token, place) = key < 0 ? -__builtin_inff() : score;
    }
    __syncthreads();  // all have read the tile that the next turn overwrites
  }
}

template <class Element, int kHeads>
void launch_at(const IndexerLogitsAtArgs& args, const cuda::Device& device, void* stream) {
  using C = Config<Element, kHeads>;
  constexpr int kBytes = static_cast<int>(sizeof(Tiles<C>));
  cuda::launch<indexer_logits_at_kernel<C, Element>>(
      kOp, device,
      {.blocks = dim3(static_cast<unsigned>(args.indices.shape[0])), .threads = C::kThreads, .smem_bytes = kBytes},
      stream, args);
}

}  // namespace
}  // namespace glm5::at_sm90

namespace glm5 {

void indexer_logits_at_cuda(const IndexerLogitsAtArgs& args, void* stream) {
  using namespace at_sm90;
  check_limits(args.operands, kOp);
  if (args.indices.shape[0] == 0 || args.indices.shape[1] == 0) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  const bool few = args.operands.q.shape[1] == 32;
  if (args.operands.q.is_e4m3)
    return few ? launch_at<e4m3, 32>(args, device, stream) : launch_at<e4m3, 64>(args, device, stream);
  few ? launch_at<bf16, 32>(args, device, stream) : launch_at<bf16, 64>(args, device, stream);
}

}  // namespace glm5
