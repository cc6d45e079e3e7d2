// moe_route on sm_90a: a warp per token, whose lane l holds the experts l, l + 32, ...; a block has 8 warps x 4 tokens.
//
// A choice is a maximum over the lane's keys, one over the warp (redux) and the smallest id that has it. Lane k keeps
// choice k and looks its logit up again for the weight. Chosen experts are counted in shared memory first.
#include "cuda/exp.cuh"
#include "cuda/launch.h"
#include "ops/moe_route/check.h"

namespace glm5 {
namespace {

struct Config {
  static constexpr int kWarps = 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kTokensPerWarp = 4;
  static constexpr int kTokens = kWarps * kTokensPerWarp;
};
constexpr u32 kAllLanes = 0xffffffff;

__device__ __forceinline__ f32 exp_of_difference(f32 x, f32 y) { return exp_of<ScalarLanes>(__fsub_rn(x, y)); }

// What turns a logit into a score.
struct Scoring {
  bool softmax;
  f32 most, total;  // of the softmax

  __device__ __forceinline__ f32 score(f32 logit) const {
    return softmax ? __fdiv_rn(exp_of_difference(logit, most), total) : __fdiv_rn(1.0f, cuda::one_and_exp(-logit));
  }
};

template <int kPerLane>
__device__ __forceinline__ Scoring scoring_of(const f32 (&logits)[kPerLane], bool softmax) {
  if (!softmax) return {false, 0, 0};
  f32 most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) most = logits[i] > most ? logits[i] : most;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const f32 other = __shfl_xor_sync(kAllLanes, most, distance);
    most = other > most ? other : most;
  }
  f32 total = exp_of_difference(logits[0], most);
#pragma unroll
  for (int i = 1; i < kPerLane; ++i) total = __fadd_rn(total, exp_of_difference(logits[i], most));
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    total = __fadd_rn(total, __shfl_xor_sync(kAllLanes, total, distance));
  return {true, most, total};
}

// A row of logits, -inf behind the experts.
template <int kPerLane>
__device__ __forceinline__ void load_row(const Tensor<const f32, 2>& from, i64 token, f32 (&logits)[kPerLane]) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = static_cast<int>(threadIdx.x % 32) + 32 * i;
    logits[i] = expert < from.shape[1] ? *from.at(token, expert) : -INFINITY;
  }
}

// The expert of the largest key within begin .. end, and that key.
struct Best {
  i32 key;
  int expert;
};
template <int kPerLane>
__device__ __forceinline__ Best best_of(const i32 (&keys)[kPerLane], int begin, int end) {
  Best mine{kNoKey, 0x7fffffff};
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (expert >= begin && expert < end && keys[i] > mine.key) mine = {keys[i], expert};
  }
  const i32 key = __reduce_max_sync(kAllLanes, mine.key);
  return {key, __reduce_min_sync(kAllLanes, mine.key == key ? mine.expert : 0x7fffffff)};
}

template <int kPerLane>
__device__ __forceinline__ void set_key(i32 (&keys)[kPerLane], int expert, i32 key) {
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (static_cast<int>(threadIdx.x % 32) + 32 * i == expert) keys[i] = key;
}

template <int kPerLane>
__device__ __forceinline__ void drop_groups(i32 (&keys)[kPerLane], int size, int groups, int kept_groups) {
  i32 mine = kNoKey;  // lane g: of group g
  for (int g = 0; g < groups; ++g) {
    const Best first = best_of(keys, g * size, (g + 1) * size);
    f32 score = f32_of_key(first.key);
    if (size > 1) {
      set_key(keys, first.expert, kNoKey);
      score = __fadd_rn(score, f32_of_key(best_of(keys, g * size, (g + 1) * size).key));
      set_key(keys, first.expert, first.key);
    }
    if (threadIdx.x % 32 == g) mine = key_of(score);
  }
  u32 kept = 0;
  for (int r = 0; r < kept_groups; ++r) {
    const i32 key = __reduce_max_sync(kAllLanes, mine);
    const int best = __ffs(static_cast<int>(__ballot_sync(kAllLanes, mine == key))) - 1;
    kept |= 1u << best;
    if (threadIdx.x % 32 == best) mine = kNoKey;
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = static_cast<int>(threadIdx.x % 32) + 32 * i;
    if (expert < size * groups && (kept >> (expert / size) & 1) == 0) keys[i] = kNoKey;
  }
}

// Lane k's choice.
template <int kPerLane>
__device__ __forceinline__ int choose(const MoeRouteArgs& args, const f32 (&logits)[kPerLane], const Scoring& scoring) {
  const int experts = static_cast<int>(args.logits.shape[1]), topk = static_cast<int>(args.experts.shape[1]);
  i32 keys[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int expert = static_cast<int>(threadIdx.x % 32) + 32 * i;
    keys[i] = kNoKey;
    if (expert >= experts) continue;
    const f32 score = scoring.score(logits[i]);
    keys[i] = key_of(args.bias.exists() ? __fadd_rn(score, *args.bias.at(expert)) : score);
  }
  if (args.topk_group < args.n_group) {
    const int groups = static_cast<int>(args.n_group);
    drop_groups(keys, experts / groups, groups, static_cast<int>(args.topk_group));
  }
  int mine = 0;
  for (int k = 0; k < topk; ++k) {
    const int expert = best_of(keys, 0, experts).expert;
    set_key(keys, expert, kNoKey);
    if (threadIdx.x % 32 == k) mine = expert;
  }
  return mine;
}

// The sum over slots, ascending, of what lane k has for slot k.
__device__ __forceinline__ f32 sum_of_slots(f32 mine, int topk) {
  f32 sum = 0;
  for (int k = 0; k < topk; ++k) sum = __fadd_rn(sum, __shfl_sync(kAllLanes, mine, k));
  return sum;
}

template <int kPerLane>
__device__ __forceinline__ void route_token(const MoeRouteArgs& args, i64 token, u32* counts) {
  const int lane = threadIdx.x % 32, topk = static_cast<int>(args.experts.shape[1]);
  f32 logits[kPerLane];
  load_row(args.logits, token, logits);
  const Scoring scoring = scoring_of(logits, args.softmax);
  int expert = args.replays() && lane < topk ? args.replayed(token, lane) : 0;
  if (!args.replays() || __any_sync(kAllLanes, expert < 0)) expert = choose(args, logits, scoring);
  const bool is_expert = expert < args.logits.shape[1];
  const f32 score = is_expert && lane < topk ? scoring.score(*args.logits.at(token, expert)) : f32_of_bits(0x7fc00000);
  const f32 sum = __fadd_rn(sum_of_slots(score, topk), kWeightFloor);
  if (lane >= topk) return;
  *args.experts.at(token, lane) = expert;
  *args.weights.at(token, lane) = __fmul_rn(args.normalize ? __fdiv_rn(score, sum) : score, args.scale);
  if (is_expert) atomicAdd(counts + expert, 1u);
}

template <int kPerLane>
__global__ __launch_bounds__(Config::kThreads, 2)
void moe_route_kernel(const __grid_constant__ MoeRouteArgs args) {
  __shared__ u32 counts[32 * kPerLane];
  for (u32 e = threadIdx.x; e < 32 * kPerLane; e += Config::kThreads) counts[e] = 0;
  __syncthreads();
  const i64 first = i64{blockIdx.x} * Config::kTokens + threadIdx.x / 32;
  for (int i = 0; i < Config::kTokensPerWarp; ++i) {
    const i64 token = first + i * Config::kWarps;
    if (token < args.experts.shape[0]) route_token<kPerLane>(args, token, counts);
    __syncwarp();
  }
  __syncthreads();
  for (u32 e = threadIdx.x; e < args.counts.shape[0]; e += Config::kThreads)
    if (counts[e] != 0) atomicAdd(args.counts.at(e), static_cast<i32>(counts[e]));
}

template <int kPerLane>
__global__ __launch_bounds__(Config::kThreads, 2)
void moe_route_bwd_kernel(const __grid_constant__ MoeRouteBwdArgs args) {
  const int lane = threadIdx.x % 32, topk = static_cast<int>(args.experts.shape[1]);
  const int experts = static_cast<int>(args.logits.shape[1]);
  const i64 token = i64{blockIdx.x} * Config::kWarps + threadIdx.x / 32;
  if (token >= args.logits.shape[0]) return;
  f32 logits[kPerLane];
  load_row(args.logits, token, logits);
  const Scoring scoring = scoring_of(logits, args.softmax);
  const int expert = lane < topk ? *args.experts.at(token, lane) : -1;
  const bool is_expert = expert >= 0 && expert < experts;
  const f32 d_weight = is_expert ? *args.d_weights.at(token, lane) : 0;
  const f32 score = is_expert ? scoring.score(*args.logits.at(token, expert)) : 0;
  f32 sum = 0, dot = 0, inner = 0;
  for (int k = 0; k < topk; ++k) {
    const f32 s = __shfl_sync(kAllLanes, score, k), d = __shfl_sync(kAllLanes, d_weight, k);
    sum = __fadd_rn(sum, s);
    dot = __fmaf_rn(d, s, dot);
  }
  sum = __fadd_rn(sum, kWeightFloor);
  const f32 d_score = args.normalize
                          ? __fmul_rn(__fdiv_rn(args.scale, sum), __fsub_rn(d_weight, __fdiv_rn(dot, sum)))
                          : __fmul_rn(args.scale, d_weight);
  if (args.softmax)
    for (int k = 0; k < topk; ++k) {
      const f32 d = __shfl_sync(kAllLanes, is_expert ? d_score : 0.0f, k);
      inner = __fmaf_rn(d, __shfl_sync(kAllLanes, score, k), inner);
    }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int e = lane + 32 * i;
    if (e >= experts) continue;
    *args.d_logits.at(token, e) = args.softmax ? __fmul_rn(scoring.score(logits[i]), __fsub_rn(0.0f, inner)) : 0.0f;
  }
  __syncwarp();
  if (!is_expert) return;
  *args.d_logits.at(token, expert) = args.softmax
                                         ? __fmul_rn(score, __fsub_rn(d_score, inner))
                                         : __fmul_rn(d_score, __fmul_rn(score, __fsub_rn(1.0f, score)));
}

i64 blocks_for(const char* op, i64 tokens, i64 tokens_of_block) {
  const i64 blocks = ceil_div(tokens, tokens_of_block);
  require(blocks < (i64{1} << 31), op, ": too many tokens for one launch: ", tokens);
  return blocks;
}

}  // namespace

void moe_route_cuda(const MoeRouteArgs& args, void* stream) {
  constexpr const char* kOp = "moe_route";
  check_moe_route(args);
  const cuda::Device device = cuda::require_sm90(kOp);
  const i64 experts = args.logits.shape[1], tokens = args.experts.shape[0];
  if (experts > 0) cuda::clear_rows(kOp, args.counts.data, 4 * experts, 4 * experts, 1, stream);
  if (tokens == 0 || args.experts.shape[1] == 0) return;
  const dim3 blocks(static_cast<unsigned>(blocks_for(kOp, tokens, Config::kTokens)));
  const cuda::LaunchShape shape{.blocks = blocks, .threads = Config::kThreads};
  if (experts <= 256) return cuda::launch<moe_route_kernel<8>>(kOp, device, shape, stream, args);
  if (experts <= 512) return cuda::launch<moe_route_kernel<16>>(kOp, device, shape, stream, args);
  cuda::launch<moe_route_kernel<32>>(kOp, device, shape, stream, args);
}

void moe_route_bwd_cuda(const MoeRouteBwdArgs& args, void* stream) {
  constexpr const char* kOp = "moe_route_bwd";
  const i64 experts = args.logits.shape[1], tokens = args.logits.shape[0];
  check_moe_route_sizes(kOp, experts, args.experts.shape[1]);
  const cuda::Device device = cuda::require_sm90(kOp);
  if (tokens == 0 || experts == 0) return;
  const dim3 blocks(static_cast<unsigned>(blocks_for(kOp, tokens, Config::kWarps)));
  const cuda::LaunchShape shape{.blocks = blocks, .threads = Config::kThreads};
  if (experts <= 256) return cuda::launch<moe_route_bwd_kernel<8>>(kOp, device, shape, stream, args);
  if (experts <= 512) return cuda::launch<moe_route_bwd_kernel<16>>(kOp, device, shape, stream, args);
  cuda::launch<moe_route_bwd_kernel<32>>(kOp, device, shape, stream, args);
}

}  // namespace glm5
