// mla_cache_append on sm_90a: a warp per token; bound by memory.
//
// Lane j holds the pairs of values 2j, 2j + 1 of every 64: two of the header's chains, the pair that rope turns, and
// with two such pairs the lane's part of a group of 128. A warp's load or store is 128 bytes in a row (64 of e4m3). nvcc
// fuses products and sums unless told otherwise, so both are written as the intrinsics that it leaves alone.
#include "core/error.h"
#include "cuda/cache_rows.cuh"
#include "cuda/launch.h"
#include "ops/mla_cache_append/mla_cache_append.h"

namespace glm5 {
namespace {

using cuda::other_lane;

constexpr const char* kOp = "mla_cache_append";

struct Config {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kPairs = kMlaLatent / 64;  // of a lane
};

__device__ __forceinline__ float2 pair_of(const f32* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ float2 pair_of(const bf16* from) {
  const u32 pair = *reinterpret_cast<const u32*>(from);
  return {f32_of_bits(pair << 16), f32_of_bits(pair & 0xffff0000)};
}
__device__ __forceinline__ u32 to_bf16_pair(f32 low, f32 high) {
  return u32{to_bf16(low).bits} | u32{to_bf16(high).bits} << 16;
}
__device__ __forceinline__ f32 as_stored(f32 value, const f32*) { return value; }
__device__ __forceinline__ f32 as_stored(f32 value, const bf16*) { return to_f32(to_bf16(value)); }

// 1 / sqrt(mean of squares + eps), the same in all lanes.
__device__ __forceinline__ f32 inverse_norm(const float2 (&x)[Config::kPairs], f32 eps) {
  f32 even = __fmul_rn(x[0].x, x[0].x), odd = __fmul_rn(x[0].y, x[0].y);
#pragma unroll
  for (int i = 1; i < Config::kPairs; ++i) {
    even = __fadd_rn(even, __fmul_rn(x[i].x, x[i].x));
    odd = __fadd_rn(odd, __fmul_rn(x[i].y, x[i].y));
  }
#pragma unroll
  for (int lanes = 16; lanes >= 1; lanes /= 2) {  // chains 2 * lanes apart
    even = __fadd_rn(even, other_lane(even, lanes));
    odd = __fadd_rn(odd, other_lane(odd, lanes));
  }
  const f32 mean = __fmul_rn(__fadd_rn(even, odd), 1.0f / kMlaLatent);
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, eps)));
}

// Two pairs of `latent` are the lane's part of a group.
__device__ __forceinline__ void store_bytes(const u32 (&latent)[Config::kPairs], bool power_of_two, u8* token,
                                            int lane) {
#pragma unroll
  for (int g = 0; g < kMlaGroups; ++g) {
    const u32 first = latent[2 * g], second = latent[2 * g + 1];
    const f32 x[4] = {f32_of_bits(first << 16), f32_of_bits(first & 0xffff0000), f32_of_bits(second << 16),
                      f32_of_bits(second & 0xffff0000)};
    const f32 scale = cuda::group_scale(x, power_of_two);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const f32 low = cuda::quotient_of(x[2 * half], scale), high = cuda::quotient_of(x[2 * half + 1], scale);
      *reinterpret_cast<u16*>(token + g * kFp8Group + half * 64 + 2 * lane) =
          ptx::cvt_rn_satfinite_e4m3x2_f32(high, low);
    }
    if (lane == 0) *reinterpret_cast<f32*>(token + kMlaScalesAt + 4 * g) = scale;
  }
}

template <class T, class Weight>
__global__ __launch_bounds__(Config::kThreads)
void mla_cache_append_kernel(const __grid_constant__ MlaCacheAppendArgs args) {
  const i64 token = i64{blockIdx.x} * Config::kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (token >= args.kv.shape[0]) return;
  const i64 slot = *args.cache_slots.at(token);
  if (slot < 0 || slot >= args.cache.slots()) return;
  const i64 position = smaller(larger(*args.positions.at(token), 0), args.cos_sin.shape[0] - 1);
  const T* kv = args.kv.as<const T>().at(token, 2 * lane);
  const Weight* weight = args.norm_weight.as<const Weight>().at(2 * lane);

  float2 x[Config::kPairs];
#pragma unroll
  for (int i = 0; i < Config::kPairs; ++i) x[i] = pair_of(kv + 64 * i);
  const float2 rope = pair_of(kv + kMlaLatent), turn = pair_of(args.cos_sin.at(position, lane, 0));
  const f32 inverse = inverse_norm(x, args.eps);
  u32 latent[Config::kPairs];
#pragma unroll
  for (int i = 0; i < Config::kPairs; ++i) {
    const float2 scaled = pair_of(weight + 64 * i);
    latent[i] = to_bf16_pair(__fmul_rn(as_stored(__fmul_rn(x[i].x, inverse), kv), scaled.x),
                             __fmul_rn(as_stored(__fmul_rn(x[i].y, inverse), kv), scaled.y));
  }
  const u32 turned = to_bf16_pair(__fsub_rn(__fmul_rn(rope.x, turn.x), __fmul_rn(rope.y, turn.y)),
                                  __fadd_rn(__fmul_rn(rope.y, turn.x), __fmul_rn(rope.x, turn.y)));

  if (args.cache.bytes.exists()) {
    u8* to = args.cache.bytes_of(slot);
    store_bytes(latent, args.power_of_two, to, lane);
    *reinterpret_cast<u32*>(to + kMlaRopeAt + 4 * lane) = turned;
  } else {
    u32* to = reinterpret_cast<u32*>(args.cache.values_of(slot)) + lane;
#pragma unroll
    for (int i = 0; i < Config::kPairs; ++i) to[32 * i] = latent[i];
    to[32 * Config::kPairs] = turned;
  }
}

template <class T, class Weight>
void launch_append(const MlaCacheAppendArgs& args, void* stream) {
  const cuda::Device device = cuda::require_sm90(kOp);
  const dim3 blocks(static_cast<unsigned>(ceil_div(args.kv.shape[0], Config::kWarps)));
  cuda::launch<mla_cache_append_kernel<T, Weight>>(kOp, device, {.blocks = blocks, .threads = Config::kThreads}, stream,
                                                   args);
}

// Pairs are read and written as one.
void require_aligned(const char* name, const void* data, i64 row_bytes, u64 bytes) {
  require(reinterpret_cast<u64>(data) % bytes == 0 && static_cast<u64>(row_bytes) % bytes == 0, kOp, ": ", name,
          " must start at a multiple of ", bytes, " bytes, and its rows too, on CUDA");
}

}  // namespace

void mla_cache_append_cuda(const MlaCacheAppendArgs& args, void* stream) {
  if (args.kv.shape[0] == 0 || args.cache.slots() == 0) return;
  const bool wide = args.kv.dtype == Float::f32, wide_weight = args.norm_weight.dtype == Float::f32;
  require(args.cos_sin.shape[0] > 0, kOp, ": cos_sin must have a row for every position; got none");
  require_aligned("kv", args.kv.data, args.kv.shape[0] > 1 ? args.kv.stride[0] * (wide ? 4 : 2) : 0, wide ? 8 : 4);
  require_aligned("norm_weight", args.norm_weight.data, 0, wide_weight ? 8 : 4);
  require_aligned("cos_sin", args.cos_sin.data, 0, 8);
  require_aligned("cache", args.cache.bytes.exists() ? static_cast<const void*>(args.cache.bytes.data)
                                                     : args.cache.values.data, 0, 4);
  if (wide && wide_weight) return launch_append<f32, f32>(args, stream);
  if (wide) return launch_append<f32, bf16>(args, stream);
  if (wide_weight) return launch_append<bf16, f32>(args, stream);
  launch_append<bf16, bf16>(args, stream);
}

}  // namespace glm5
