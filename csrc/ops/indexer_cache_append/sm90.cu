// indexer_cache_append on sm_90a: a warp per token, four values a lane; bound by memory.
//
// Lane j holds the values j, j + 32, j + 64, j + 96, which are the header's chain j, so a sum is three additions and a
// butterfly. The pairs of the rope lie in neighbouring lanes, the Hadamard stages at distances below 32 too. nvcc fuses
// products and sums unless told otherwise, so both are written as the intrinsics that it leaves alone.
#include "core/error.h"
#include "cuda/cache_rows.cuh"
#include "cuda/launch.h"
#include "ops/indexer_cache_append/indexer_cache_append.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "indexer_cache_append";

struct Config {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kPerLane = kIndexDim / 32;
};

using Values = f32[Config::kPerLane];

using cuda::other_lane;

__device__ __forceinline__ f32 sum_of(const Values& x) {
  f32 sum = __fadd_rn(__fadd_rn(__fadd_rn(x[0], x[1]), x[2]), x[3]);
#pragma unroll
  for (int half = 16; half >= 1; half /= 2) sum = __fadd_rn(sum, other_lane(sum, half));
  return sum;
}

template <class Weight>
__device__ __forceinline__ void normalise(Values& x, const Weight* weight, const Weight* bias, f32 eps, int lane) {
  const f32 mean = __fmul_rn(sum_of(x), 1.0f / kIndexDim);
  Values square;
#pragma unroll
  for (int i = 0; i < Config::kPerLane; ++i) {
    x[i] = __fsub_rn(x[i], mean);
    square[i] = __fmul_rn(x[i], x[i]);
  }
  const f32 variance = __fmul_rn(sum_of(square), 1.0f / kIndexDim);
  const f32 inverse = __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(variance, eps)));
#pragma unroll
  for (int i = 0; i < Config::kPerLane; ++i) {
    const f32 scaled = __fmul_rn(__fmul_rn(x[i], inverse), to_f32(weight[lane + 32 * i]));
    x[i] = __fadd_rn(scaled, to_f32(bias[lane + 32 * i]));
  }
}

// Values 0 .. 63 are x[0] and x[1] of all lanes; the other half of a pair is in the lane beside.
__device__ __forceinline__ void rotate(Values& x, const f32* cos_sin, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 turn = __ldg(reinterpret_cast<const float2*>(cos_sin) + (lane + 32 * i) / 2);
    const f32 own = __fmul_rn(x[i], turn.x), crossed = __fmul_rn(other_lane(x[i], 1), turn.y);
    x[i] = lane % 2 == 0 ? __fsub_rn(own, crossed) : __fadd_rn(own, crossed);
  }
}

__device__ __forceinline__ void mix(Values& x, int lane) {
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
#pragma unroll
    for (int i = 0; i < Config::kPerLane; ++i) {
      const f32 beside = other_lane(x[i], distance);
      x[i] = (lane & distance) == 0 ? __fadd_rn(x[i], beside) : __fsub_rn(beside, x[i]);
    }
  }
#pragma unroll
  for (int distance = 1; distance < Config::kPerLane; distance *= 2) {
#pragma unroll
    for (int i = 0; i < Config::kPerLane; ++i) {
      if ((i & distance) != 0) continue;
      const f32 left = x[i], right = x[i + distance];
      x[i] = __fadd_rn(left, right);
      x[i + distance] = __fsub_rn(left, right);
    }
  }
#pragma unroll
  for (int i = 0; i < Config::kPerLane; ++i) x[i] = __fmul_rn(x[i], 0.08838834764831845f);  // 128^-1/2
}

__device__ __forceinline__ void store_bytes(const Values& x, const IndexerCacheAppendArgs& args, i64 page, i64 row,
                                            int lane) {
  const f32 scale = cuda::group_scale(x, args.power_of_two);
  u8* values = args.byte_cache.at(page, row * kIndexDim);
#pragma unroll
  for (int i = 0; i < Config::kPerLane; ++i) {
    values[lane + 32 * i] =
        static_cast<u8>(ptx::cvt_rn_satfinite_e4m3x2_f32(0.0f, cuda::quotient_of(x[i], scale)) & 0xff);
  }
  if (lane == 0) {
    const u32 bits = bits_of(scale);
    u8* stored = args.byte_cache.at(page, kPage * kIndexDim + row * 4);
    *reinterpret_cast<u32*>(stored) = bits;
  }
}

template <class T, class Weight>
__global__ __launch_bounds__(Config::kThreads) void indexer_cache_append_kernel(
    const __grid_constant__ IndexerCacheAppendArgs args) {
  const i64 token = i64{blockIdx.x} * Config::kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (token >= args.k.shape[0]) return;
  const i64 slot = *args.cache_slots.at(token);
  if (slot < 0 || slot >= pages_of(args) * kPage) return;
  const i64 position = smaller(larger(*args.positions.at(token), 0), args.cos_sin.shape[0] - 1);
  const T* k = args.k.as<const T>().at(token, 0);
  Values x;
#pragma unroll
  for (int i = 0; i < Config::kPerLane; ++i) x[i] = to_f32(k[lane + 32 * i]);
  normalise(x, args.norm_weight.as<const Weight>().data, args.norm_bias.as<const Weight>().data, args.eps, lane);
  rotate(x, args.cos_sin.at(position, 0, 0), lane);
  if (args.hadamard) mix(x, lane);
  const i64 page = slot / kPage, row = slot % kPage;
  if (args.bf16_cache.exists()) {
#pragma unroll
    for (int i = 0; i < Config::kPerLane; ++i) *args.bf16_cache.at(page, row, lane + 32 * i) = to_bf16(x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < Config::kPerLane; ++i) x[i] = to_f32(to_bf16(x[i]));
    store_bytes(x, args, page, row, lane);
  }
}

template <class T, class Weight>
void launch_append(const IndexerCacheAppendArgs& args, void* stream) {
  const cuda::Device device = cuda::require_sm90(kOp);
  const dim3 blocks(static_cast<unsigned>(ceil_div(args.k.shape[0], Config::kWarps)));
  cuda::launch<indexer_cache_append_kernel<T, Weight>>(kOp, device, {.blocks = blocks, .threads = Config::kThreads},
                                                       stream, args);
}

}  // namespace

void indexer_cache_append_cuda(const IndexerCacheAppendArgs& args, void* stream) {
  if (args.k.shape[0] == 0 || pages_of(args) == 0) return;
  require(args.cos_sin.shape[0] > 0, kOp, ": cos_sin must have a row for every position; got none");
  require(reinterpret_cast<u64>(args.cos_sin.data) % 8 == 0, kOp,
          ": cos_sin must start at a multiple of 8 bytes on CUDA");
  require(!args.byte_cache.exists() ||
              (reinterpret_cast<u64>(args.byte_cache.data) % 4 == 0 && args.byte_cache.stride[0] % 4 == 0),
          kOp, ": cache must start at a multiple of 4 bytes, and its pages too, on CUDA");
  const bool wide = args.k.dtype == Float::f32, wide_weight = args.norm_weight.dtype == Float::f32;
  if (wide && wide_weight) return launch_append<f32, f32>(args, stream);
  if (wide) return launch_append<f32, bf16>(args, stream);
  if (wide_weight) return launch_append<bf16, f32>(args, stream);
  launch_append<bf16, bf16>(args, stream);
}

}  // namespace glm5
