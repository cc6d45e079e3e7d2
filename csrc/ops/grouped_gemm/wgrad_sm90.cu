// grouped_gemm_wgrad on sm_90a for bf16 with unit stride along n and k, as rows of activations and gradients have it.
//
// The body is gemm's with k along the rows of an expert (cuda/gemm_bf16.cuh). Where these end within a stage of 64, the
// producer warp writes zeros over what follows before it hands the stage on.
#include "cuda/expert_tiles.cuh"
#include "cuda/gemm_bf16.cuh"
#include "cuda/tma_descriptor.h"
#include "ops/grouped_gemm/launch_sm90.h"

namespace glm5::grouped_gemm_sm90 {
namespace {

constexpr const char* kWgrad = "grouped_gemm_wgrad";
using cuda::gemm_bf16::SharedStorage;
using ptx::Major;

struct Shape {
  static constexpr cuda::GemmVariant kVariant = kWgradVariant;
};
using T = cuda::gemm_bf16::Tile<Shape, Major::rows, Major::rows>;

struct WgradArgs : cuda::gemm_bf16::KernelArgs {
  cuda::Experts experts;
};

// Tiles of one expert after those of another.
struct RowsWalk {
  using Args = WgradArgs;
  static constexpr bool kRagged = true;
  int tile = blockIdx.x;
  int batch, left_row, right_row, begin, end;

  __device__ __forceinline__ bool find(const WgradArgs& args, u32) {
    if (tile >= args.tiles) return false;
    const int expert = tile / args.grid.count();
    const cuda::TilePlace place = args.grid.at(tile - expert * args.grid.count());
    left_row = place.row * T::kLeft;
    right_row = place.column * T::kRight;
    begin = cuda::held_within(__ldg(args.experts.bounds + expert), args.experts.rows);
    end = max(begin, cuda::held_within(__ldg(args.experts.bounds + expert + 1), args.experts.rows));
    batch = expert;
    return true;
  }
  __device__ __forceinline__ void advance() { tile += gridDim.x; }

  __device__ __forceinline__ int left_end(const WgradArgs& args) const { return args.out.m; }
  __device__ __forceinline__ int first_k(const WgradArgs&) const { return begin; }
  __device__ __forceinline__ int last_k(const WgradArgs&) const { return end; }
  __device__ __forceinline__ cuda::TileOut out(const WgradArgs& args) const {
    cuda::TileOut out = args.out;
    out.data = static_cast<u8*>(out.data) + batch * args.out_batch_stride * (out.is_f32 ? 4 : 2);
    return out;
  }
};

__global__ __launch_bounds__(kWgradVariant.threads(),
                             1) void grouped_wgrad_bf16_kernel(const __grid_constant__ WgradArgs args) {
  static_assert(sizeof(SharedStorage<T>) == cuda::gemm_smem_bytes(kWgradVariant, 0));
  cuda::gemm_bf16::run<T, RowsWalk>(args);
}

CUtensorMap map_of(const Tensor<const bf16, 2>& operand, const char* name) {
  require(operand.shape[0] == 1 || operand.stride[0] == 1, kWgrad, ": ", name,
          " must have unit stride along its rows on CUDA, got ", operand.stride[0]);
  return cuda::tma_descriptor({.dtype = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                               .element_bytes = sizeof(bf16),
                               .data = operand.data,
                               .rows = operand.shape[1],
                               .columns = operand.shape[0],
                               .row_stride = operand.stride[1],
                               .box_rows = cuda::gemm_bf16::kStepK,
                               .box_columns = cuda::gemm_bf16::kBoxRows,
                               .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                               .batches = 1},
                              kWgrad, name);
}

cuda::TileOut out_of(const GroupedWgradArgs& args) {
  const bool is_f32 = args.out.dtype == Float::f32;
  const i64 in_16_bytes = is_f32 ? 4 : 8;
  return {.data = args.out.data,
          .row_stride = args.out.stride[1],
          .m = static_cast<int>(args.out.shape[1]),
          .n = static_cast<int>(args.out.shape[2]),
          .is_f32 = is_f32,
          .accumulate = args.accumulate,
          .rows_are_aligned = reinterpret_cast<std::uintptr_t>(args.out.data) % 16 == 0 &&
                              args.out.stride[1] % in_16_bytes == 0 && args.out.stride[0] % in_16_bytes == 0};
}

// No rows at all: zeros, or nothing to add.
void clear_out(const GroupedWgradArgs& args, void* stream) {
  if (args.accumulate) return;
  const i64 bytes = args.out.dtype == Float::f32 ? 4 : 2;
  for (i64 e = 0; e < args.out.shape[0]; ++e)
    cuda::clear_rows(kWgrad, matrix_of(args.out, e).data, args.out.stride[1] * bytes, args.out.shape[2] * bytes,
                     args.out.shape[1], stream);
}

}  // namespace
}  // namespace glm5::grouped_gemm_sm90

namespace glm5 {

void grouped_gemm_wgrad_cuda(const GroupedWgradArgs& args, void* stream) {
  using namespace grouped_gemm_sm90;
  const i64 experts = args.out.shape[0], n = args.out.shape[1], k = args.out.shape[2], rows = args.a.shape[1];
  cuda::require_gemm_size(kWgrad, n, k, rows);
  require(!args.a.is_e4m3, kWgrad, ": e4m3 operands run on the CPU alone");
  require(args.out.dtype != Float::f16, kWgrad, ": out must be bf16 or f32, got f16");
  if (experts == 0 || n == 0 || k == 0) return;
  const cuda::Device device = cuda::require_sm90(kWgrad);
  if (rows == 0) return clear_out(args, stream);
  const i64 left_tiles = ceil_div(n, T::kLeft), right_tiles = ceil_div(k, T::kRight);
  const i64 tiles = experts * left_tiles * right_tiles;
  require(tiles < (i64{1} << 31) - 1024, kWgrad, ": ", experts, " experts of ", n, " x ", k,
          " make more tiles than 32 bits count");
  WgradArgs kernel{};
  kernel.left_map = map_of(args.a.as<bf16>(), "a");
  kernel.right_map = map_of(args.b.as<bf16>(), "b");
  kernel.out = out_of(args);
  kernel.out_batch_stride = args.out.stride[0];
  kernel.grid = {static_cast<int>(left_tiles), static_cast<int>(right_tiles),
                 static_cast<int>(smaller(16, left_tiles))};
  kernel.tiles = static_cast<int>(tiles);
  kernel.experts = {args.offsets.data, static_cast<int>(experts), static_cast<int>(rows), 0};
  cuda::launch<grouped_wgrad_bf16_kernel>(kWgrad, device,
                                          {.blocks = dim3(static_cast<unsigned>(smaller(tiles, device.sms))),
                                           .threads = kWgradVariant.threads(),
                                           .smem_bytes = cuda::gemm_smem_bytes(kWgradVariant, 0)},
                                          stream, kernel);
}

}  // namespace glm5
