// gemm with f32 operands on sm_90a: fused multiply-adds of the ordinary cores, because tensor cores round to TF32.
//
// The summation tree is that of the CPU, to the bit: each part of 128 k is one chain, parts are added ascending. Two
// tiles:
//   wide    128 x 128, 256 threads with 8 x 8 results each; a part is complete every 8 steps and goes onto the total.
//   narrow  32 x 32, 8 warps of which each computes another part of 128 k, side by side; the block adds them in order.
//           For few tiles, as the router's (n = 256, few rows), where the wide tile would leave most of the GPU idle.
// Both keep k-slices of the operands in shared memory as [k][row], in two buffers: a step loads the next slice from
// memory into registers, multiplies the present one, and stores what it loaded.
#include "core/fp8.h"
#include "cuda/launch.h"
#include "ops/gemm/sm90.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "gemm";
constexpr int kPart = 128;  // k of a part of the summation tree
constexpr int kDepth = 16;  // k of a step
constexpr int kPartSteps = kPart / kDepth;
constexpr int kThreads = 256;

template <int kTileM, int kTileN, int kThreadsM, int kThreadsN>
struct TileConfig {
  static constexpr int kM = kTileM, kN = kTileN;
  static constexpr int kAcross = kThreadsN;                          // threads side by side along n
  static constexpr int kQuadsM = kTileM / (4 * kThreadsM);           // a thread's rows, four neighbours each
  static constexpr int kQuadsN = kTileN / (4 * kThreadsN);           // a thread's columns
  static constexpr int kSliceThreads = kThreadsM * kThreadsN;
  static constexpr int kSlices = kThreads / kSliceThreads;           // parts of k that are computed side by side
  static constexpr int kFetchM = kTileM * kDepth / 4 / kSliceThreads;  // loads of 16 bytes in a step
  static constexpr int kFetchN = kTileN * kDepth / 4 / kSliceThreads;
};
using Wide = TileConfig<128, 128, 16, 16>;
using Narrow = TileConfig<32, 32, 8, 4>;

// Rows are padded by four words: they stay aligned to 16 bytes, and columns of them spread over the banks.
template <class Config>
struct SharedStorage {
  struct Slice {
    f32 a[kDepth][Config::kM + 4];
    f32 b[kDepth][Config::kN + 4];
  };
  Slice slices[2][Config::kSlices];
  f32 parts[Config::kSlices == 1 ? 1 : Config::kSlices][Config::kSlices == 1 ? 1 : Config::kM * Config::kN];
};

// Rows of an operand from first_row on.
struct Operand {
  const f32* data;
  i64 row_stride, k_stride;
  i64 rows, k;  // rows that are left

  __device__ __forceinline__ Operand(const FloatTensor<3>& tensor, i64 batch, i64 first_row)
      : data(static_cast<const f32*>(tensor.data) + batch * tensor.stride[0] + first_row * tensor.stride[1]),
        row_stride(tensor.stride[1]),
        k_stride(tensor.stride[2]),
        rows(tensor.shape[1] - first_row),
        k(tensor.shape[2]) {}
};

// Four neighbours along one dimension, zeros from `live` on.
__device__ __forceinline__ float4 load_quad(const f32* from, i64 stride, i64 live) {
  if (live >= 4 && stride == 1 && (reinterpret_cast<std::uintptr_t>(from) & 15) == 0)
    return __ldg(reinterpret_cast<const float4*>(from));
  float4 quad = {0, 0, 0, 0};
  if (live > 0) quad.x = from[0];
  if (live > 1) quad.y = from[stride];
  if (live > 2) quad.z = from[2 * stride];
  if (live > 3) quad.w = from[3 * stride];
  return quad;
}

// kRows x kDepth values of an operand on their way through the registers of kSliceThreads threads. Neighbouring threads
// follow the dimension of unit stride.
template <int kRows, int kSliceThreads, int kQuads>
struct Fetch {
  float4 quads[kQuads];

  __device__ __forceinline__ void load(const Operand& operand, i64 first_k, int thread) {
    const bool along_k = operand.k_stride == 1;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = i * kSliceThreads + thread;
      const int row = along_k ? quad / (kDepth / 4) : quad % (kRows / 4) * 4;
      const i64 k = first_k + (along_k ? quad % (kDepth / 4) * 4 : quad / (kRows / 4));
      const f32* from = operand.data + row * operand.row_stride + k * operand.k_stride;
      i64 live = along_k ? operand.k - k : operand.rows - row;
      if (along_k ? row >= operand.rows : k >= operand.k) live = 0;
      quads[i] = load_quad(from, along_k ? operand.k_stride : operand.row_stride, live);
    }
  }

  __device__ __forceinline__ void store(f32 (&to)[kDepth][kRows + 4], bool along_k, int thread) const {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const int quad = i * kSliceThreads + thread;
      if (along_k) {
        const int row = quad / (kDepth / 4), k = quad % (kDepth / 4) * 4;
        to[k][row] = quads[i].x;
        to[k + 1][row] = quads[i].y;
        to[k + 2][row] = quads[i].z;
        to[k + 3][row] = quads[i].w;
      } else {
        *reinterpret_cast<float4*>(&to[quad / (kRows / 4)][quad % (kRows / 4) * 4]) = quads[i];
      }
    }
  }
};

__device__ __forceinline__ void unpack(const f32* from, f32* to) {
  const float4 quad = *reinterpret_cast<const float4*>(from);
  to[0] = quad.x;
  to[1] = quad.y;
  to[2] = quad.z;
  to[3] = quad.w;
}

// Quads of a thread lie a quarter-warp's width apart, so that a warp reads neighbouring 16 bytes.
template <class Config>
__device__ __forceinline__ int row_of(int y, int i) {
  return i / 4 * (Config::kM / Config::kQuadsM) + y * 4 + i % 4;
}
template <class Config>
__device__ __forceinline__ int column_of(int x, int j) {
  return j / 4 * (Config::kN / Config::kQuadsN) + x * 4 + j % 4;
}

template <class Config>
using Results = f32[4 * Config::kQuadsM][4 * Config::kQuadsN];

template <class Config>
__device__ __forceinline__ void multiply_step(const typename SharedStorage<Config>::Slice& slice, int y, int x,
                                              Results<Config>& part) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    f32 a[4 * Config::kQuadsM], b[4 * Config::kQuadsN];
#pragma unroll
    for (int i = 0; i < 4 * Config::kQuadsM; i += 4) unpack(&slice.a[k][row_of<Config>(y, i)], a + i);
#pragma unroll
    for (int j = 0; j < 4 * Config::kQuadsN; j += 4) unpack(&slice.b[k][column_of<Config>(x, j)], b + j);
#pragma unroll
    for (int i = 0; i < 4 * Config::kQuadsM; ++i)
#pragma unroll
      for (int j = 0; j < 4 * Config::kQuadsN; ++j) part[i][j] = __fmaf_rn(a[i], b[j], part[i][j]);
  }
}

__device__ __forceinline__ void store_total(const GemmArgs& args, i64 batch, i64 row, i64 column, f32 total) {
  if (row >= args.out.shape[1] || column >= args.out.shape[2]) return;
  if (args.out.dtype == Float::f32) {
    f32* out = args.out.as<f32>().at(batch, row, column);
    *out = args.accumulate ? __fadd_rn(*out, total) : total;
  } else {
    bf16* out = args.out.as<bf16>().at(batch, row, column);
    *out = to_bf16(args.accumulate ? __fadd_rn(to_f32(*out), total) : total);
  }
}

// Adds the parts that the warps have computed, in order, to the totals that this thread keeps: every 256th of the tile.
template <class Config>
__device__ __forceinline__ void add_parts(SharedStorage<Config>& smem, const Results<Config>& part, int slice, int y,
                                          int x, i64 parts, f32 (&totals)[Config::kM * Config::kN / kThreads]) {
#pragma unroll
  for (int i = 0; i < 4 * Config::kQuadsM; ++i)
#pragma unroll
    for (int j = 0; j < 4 * Config::kQuadsN; ++j)
      smem.parts[slice][row_of<Config>(y, i) * Config::kN + column_of<Config>(x, j)] = part[i][j];
  __syncthreads();
  for (int s = 0; s < smaller(Config::kSlices, parts); ++s)
#pragma unroll
    for (int i = 0; i < Config::kM * Config::kN / kThreads; ++i)
      totals[i] = __fadd_rn(totals[i], smem.parts[s][i * kThreads + threadIdx.x]);
}

template <class Config>
__global__ __launch_bounds__(kThreads)
void gemm_f32_kernel(const __grid_constant__ GemmArgs args) {
  extern __shared__ __align__(16) u8 storage[];
  SharedStorage<Config>& smem = *reinterpret_cast<SharedStorage<Config>*>(storage);
  const i64 m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  const u32 tiles_m = static_cast<u32>(ceil_div(m, Config::kM)), tiles_n = static_cast<u32>(ceil_div(n, Config::kN));
  const i64 first_row = i64{blockIdx.x % tiles_m} * Config::kM;
  const i64 first_column = i64{blockIdx.x / tiles_m % tiles_n} * Config::kN;
  const i64 batch = blockIdx.x / tiles_m / tiles_n;
  const int slice = threadIdx.x / Config::kSliceThreads, thread = threadIdx.x % Config::kSliceThreads;
  const int y = thread / Config::kAcross, x = thread % Config::kAcross;
  const Operand a(args.a, batch, first_row), b(args.b, batch, first_column);

  // All slices take the same number of steps; slice 0 is the first, so its end of k decides.
  const i64 steps = ceil_div(k, kPart * Config::kSlices) * kPartSteps;
  Fetch<Config::kM, Config::kSliceThreads, Config::kFetchM> fetched_a;
  Fetch<Config::kN, Config::kSliceThreads, Config::kFetchN> fetched_b;
  const auto load = [&](i64 step) {
    const i64 first_k = (step / kPartSteps * Config::kSlices + slice) * kPart + step % kPartSteps * kDepth;
    fetched_a.load(a, first_k, thread);
    fetched_b.load(b, first_k, thread);
  };
  const auto store = [&](i64 step) {
    fetched_a.store(smem.slices[step % 2][slice].a, a.k_stride == 1, thread);
    fetched_b.store(smem.slices[step % 2][slice].b, b.k_stride == 1, thread);
  };

  Results<Config> part = {};
  Results<Config> total = {};                              // of the wide tile
  f32 totals[Config::kM * Config::kN / kThreads] = {};     // of the narrow tile
  load(0);
  store(0);
  __syncthreads();
  for (i64 step = 0; step < steps; ++step) {
    if (step + 1 < steps) load(step + 1);
    multiply_step<Config>(smem.slices[step % 2][slice], y, x, part);
    if (step + 1 < steps) store(step + 1);
    if (step % kPartSteps == kPartSteps - 1) {
      if constexpr (Config::kSlices > 1) {
        const i64 first_part = step / kPartSteps * Config::kSlices;
        add_parts<Config>(smem, part, slice, y, x, ceil_div(k, kPart) - first_part, totals);
      }
#pragma unroll
      for (int i = 0; i < 4 * Config::kQuadsM; ++i)
#pragma unroll
        for (int j = 0; j < 4 * Config::kQuadsN; ++j) {
          if constexpr (Config::kSlices == 1) total[i][j] = __fadd_rn(total[i][j], part[i][j]);
          part[i][j] = 0;
        }
    }
    __syncthreads();
  }

  if constexpr (Config::kSlices == 1) {
#pragma unroll
    for (int i = 0; i < 4 * Config::kQuadsM; ++i)
#pragma unroll
      for (int j = 0; j < 4 * Config::kQuadsN; ++j)
        store_total(args, batch, first_row + row_of<Config>(y, i), first_column + column_of<Config>(x, j), total[i][j]);
  } else {
#pragma unroll
    for (int i = 0; i < Config::kM * Config::kN / kThreads; ++i) {
      const int place = i * kThreads + threadIdx.x;
      store_total(args, batch, first_row + place / Config::kN, first_column + place % Config::kN, totals[i]);
    }
  }
}

template <class Config>
i64 count_tiles(const GemmArgs& args) {
  return args.out.shape[0] * ceil_div(args.out.shape[1], Config::kM) * ceil_div(args.out.shape[2], Config::kN);
}

template <class Config>
void launch(const GemmArgs& args, const cuda::Device& device, cudaStream_t stream) {
  const i64 tiles = count_tiles<Config>(args);
  require(tiles < (i64{1} << 31), kOp, ": out must have fewer than 2^31 tiles, got ", tiles);
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(tiles)),
                                .threads = kThreads,
                                .smem_bytes = static_cast<int>(sizeof(SharedStorage<Config>))};
  cuda::launch<gemm_f32_kernel<Config>>(kOp, device, shape, stream, args);
}

}  // namespace

void gemm_f32_cuda(const GemmArgs& args, cudaStream_t stream) {
  const cuda::Device device = cuda::require_sm90(kOp);
  if (count_tiles<Wide>(args) == 0) return;
  if (count_tiles<Wide>(args) >= device.sms) return launch<Wide>(args, device, stream);
  launch<Narrow>(args, device, stream);
}

}  // namespace glm5
