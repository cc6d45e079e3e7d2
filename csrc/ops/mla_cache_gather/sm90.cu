// mla_cache_gather on sm_90a: a warp per row, pairs of values a lane; bound by memory.
#include "core/error.h"
#include "cuda/cache_rows.cuh"
#include "cuda/launch.h"
#include "ops/mla_cache_gather/mla_cache_gather.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "mla_cache_gather";

struct Config {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
};

__device__ __forceinline__ void gather_bytes(const u8* token, u32* out, int lane) {
#pragma unroll
  for (int i = 0; i < kMlaLatent / 64; ++i) {
    const u32 pair = *reinterpret_cast<const u16*>(token + 64 * i + 2 * lane);
    const f32 scale = *reinterpret_cast<const f32*>(token + kMlaScalesAt + 4 * (i / 2));
    const f32 low = __fmul_rn(to_f32(e4m3{static_cast<u8>(pair & 0xff)}), scale);
    const f32 high = __fmul_rn(to_f32(e4m3{static_cast<u8>(pair >> 8)}), scale);
    out[32 * i + lane] = u32{to_bf16(low).bits} | u32{to_bf16(high).bits} << 16;
  }
  out[kMlaLatent / 2 + lane] = *reinterpret_cast<const u32*>(token + kMlaRopeAt + 4 * lane);
}

__global__ __launch_bounds__(Config::kThreads)
void mla_cache_gather_kernel(const __grid_constant__ MlaCacheGatherArgs args) {
  const i64 row = i64{blockIdx.x} * Config::kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (row >= args.out.shape[0]) return;
  const i64 slot = *args.cache_slots.at(row);
  u32* out = reinterpret_cast<u32*>(args.out.at(row, 0));
  const bool present = slot >= 0 && slot < args.cache.slots();
  if (present && args.cache.bytes.exists()) return gather_bytes(args.cache.bytes_of(slot), out, lane);
  const u32* from = present ? reinterpret_cast<const u32*>(args.cache.values_of(slot)) : nullptr;
#pragma unroll
  for (int i = 0; i < kMlaDim / 64; ++i) out[32 * i + lane] = present ? from[32 * i + lane] : 0;
}

}  // namespace

void mla_cache_gather_cuda(const MlaCacheGatherArgs& args, void* stream) {
  if (args.out.shape[0] == 0) return;
  const void* cache =
      args.cache.bytes.exists() ? static_cast<const void*>(args.cache.bytes.data) : args.cache.values.data;
  require(reinterpret_cast<u64>(cache) % 4 == 0, kOp, ": cache must start at a multiple of 4 bytes on CUDA");
  const cuda::Device device = cuda::require_sm90(kOp);
  const dim3 blocks(static_cast<unsigned>(ceil_div(args.out.shape[0], Config::kWarps)));
  cuda::launch<mla_cache_gather_kernel>(kOp, device, {.blocks = blocks, .threads = Config::kThreads}, stream, args);
}

}  // namespace glm5
