// grouped_gemm on sm_90a: limits, the choice of the variant, and the kernels for bf16.
//
// The body is gemm's (cuda/gemm_bf16.cuh); a block walks through the tiles of all experts by offsets that only the
// device reads (cuda/expert_tiles.cuh). The rows of a tile are loaded whole: those of the next expert are multiplied
// and never written, since a row of the product depends on no other.
#include "cuda/gemm_bf16.cuh"
#include "cuda/tma_descriptor.h"
#include "ops/grouped_gemm/experts_sm90.cuh"

namespace glm5::grouped_gemm_sm90 {
namespace {

using cuda::gemm_bf16::SharedStorage;
using ptx::Major;

template <int kVariantOf>
struct Shape {
  static constexpr cuda::GemmVariant kVariant = kPlainVariants[kVariantOf];
};

struct PlainArgs : cuda::gemm_bf16::KernelArgs, ExpertArgs {};

template <class T>
struct ExpertWalk {
  using Args = PlainArgs;
  static constexpr bool kRagged = false;
  static constexpr ClusterTile kTile = cluster_tile(T::kShape, true);
  int tile = blockIdx.x / T::kCluster;
  int batch, left_row, right_row, row_end;

  __device__ __forceinline__ bool find(const Args& args, u32 rank) {
    const TileRows at = tile_rows<kTile.rows, kTile.columns>(args, tile);
    batch = at.expert;
    row_end = at.row_end;
    left_row = T::kSwapped ? at.column : at.row + static_cast<int>(rank) * T::kLeft;
    right_row = T::kSwapped ? at.row : at.column;
    return batch >= 0;
  }
  __device__ __forceinline__ void advance() { tile += gridDim.x / T::kCluster; }

  __device__ __forceinline__ int left_end(const Args& args) const { return T::kSwapped ? args.n : row_end; }
  __device__ __forceinline__ int first_k(const Args&) const { return 0; }
  __device__ __forceinline__ int last_k(const Args& args) const { return args.k; }
  __device__ __forceinline__ cuda::TileOut out(const Args& args) const {
    cuda::TileOut out = args.out;
    out.m = row_end;
    return out;
  }
};

// kMajor: of the weights' lines.
template <int kVariant, Major kMajor>
__global__ __launch_bounds__(kPlainVariants[kVariant].threads(),
                             1) void grouped_gemm_bf16_kernel(const __grid_constant__ PlainArgs args) {
  constexpr bool kSwapped = kPlainVariants[kVariant].schedule == Schedule::swap_ab;
  using T = cuda::gemm_bf16::Tile<Shape<kVariant>, kSwapped ? kMajor : Major::k, kSwapped ? Major::k : kMajor>;
  static_assert(sizeof(SharedStorage<T>) == cuda::gemm_smem_bytes(kPlainVariants[kVariant], 0));
  clear_rest(args, args.out);
  cuda::gemm_bf16::run<T, ExpertWalk<T>>(args);
}

template <int kVariant, Major kMajor>
void launch(const PlainArgs& args, const cuda::Device& device, void* stream) {
  constexpr cuda::GemmVariant kShape = kPlainVariants[kVariant];
  const int grid =
      grid_of(kShape, cluster_tile(kShape, true), args.experts.rows, args.experts.count, args.n, device.sms);
  cuda::launch<grouped_gemm_bf16_kernel<kVariant, kMajor>>(kOp, device,
                                                           {.blocks = dim3(grid),
                                                            .threads = kShape.threads(),
                                                            .smem_bytes = cuda::gemm_smem_bytes(kShape, 0),
                                                            .cluster = kShape.cluster},
                                                           stream, args);
}

template <int kVariant>
void launch_variant(const PlainArgs& args, bool along_k, const cuda::Device& device, void* stream) {
  if (along_k) return launch<kVariant, Major::k>(args, device, stream);
  launch<kVariant, Major::rows>(args, device, stream);
}

// Boxes of kBoxRows rows by 64 k, or with unit stride along the rows, of 64 k by kBoxRows rows.
CUtensorMap map_of(const Tensor<const bf16, 3>& tensor, bool along_k, int tile_rows, const char* name) {
  const int rows = static_cast<int>(smaller(tile_rows, cuda::gemm_bf16::kBoxRows)), unit = along_k ? 2 : 1;
  return cuda::tma_descriptor({.dtype = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                               .element_bytes = sizeof(bf16),
                               .data = tensor.data,
                               .rows = tensor.shape[3 - unit],
                               .columns = tensor.shape[unit],
                               .row_stride = tensor.stride[3 - unit],
                               .box_rows = along_k ? rows : cuda::gemm_bf16::kStepK,
                               .box_columns = along_k ? cuda::gemm_bf16::kStepK : rows,
                               .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                               .batches = tensor.shape[0],
                               .batch_stride = tensor.stride[0]},
                              kOp, name);
}

struct Problem {
  i64 rows, experts, n, k;
};

// The limits of the CUDA kernels; that shapes agree was checked by the caller.
Problem check_limits(const GroupedGemmArgs& args) {
  const Problem problem{args.out.shape[0], args.experts(), args.w.shape[1], args.w.shape[2]};
  cuda::require_gemm_size(kOp, problem.rows, problem.n, problem.k);
  require(args.out.dtype != Float::f16, kOp, ": out must be bf16 or f32, got f16");
  require(args.rows.is_e4m3 == args.w.is_e4m3, kOp, ": bf16 rows with e4m3 weights run on the CPU alone");
  // Tiles of all experts are counted in 32 bits.
  require((problem.rows / 16 + problem.experts + 1) * (problem.n / 64 + 1) < (i64{1} << 31) - 1024, kOp, ": ",
          problem.rows, " rows of ", problem.n, " columns make more tiles than 32 bits count");
  return problem;
}

// No expert, or an empty sum: zeros, or nothing to add.
void clear_out(const GroupedGemmArgs& args, void* stream) {
  if (args.accumulate) return;
  require(args.clear_rest || args.w.shape[2] > 0, kOp, ": k must be at least 1 on CUDA where out is given");
  if (!args.clear_rest) return;
  const i64 bytes = args.out.dtype == Float::f32 ? 4 : 2;
  cuda::clear_rows(kOp, args.out.data, args.out.stride[0] * bytes, args.out.shape[1] * bytes, args.out.shape[0],
                   stream);
}

void run(const GroupedGemmArgs& given, int variant, const cuda::Device& device, void* stream) {
  const GroupedGemmArgs args = given.row_tokens.exists() ? gather(given, device, stream) : given;
  if (args.rows.is_e4m3) return launch_fp8(args, variant, device, stream);
  launch_plain(args, variant, device, stream);
}

}  // namespace

void launch_plain(const GroupedGemmArgs& args, int variant, const cuda::Device& device, void* stream) {
  const cuda::GemmVariant& shape = kPlainVariants[variant];
  const bool swapped = shape.schedule == Schedule::swap_ab;
  const Tensor<const bf16, 2> rows = args.rows.as<bf16>();
  const Tensor<const bf16, 3> w = args.w.as<bf16>(),
                              x{rows.data, {1, rows.shape[0], rows.shape[1]}, {0, rows.stride[0], rows.stride[1]}};
  const bool along_k = w.shape[2] == 1 || w.stride[2] == 1;
  PlainArgs kernel{};
  static_cast<ExpertArgs&>(kernel) = expert_args(args);
  const CUtensorMap x_map = map_of(x, true, swapped ? shape.right : shape.left, "rows");
  const CUtensorMap w_map = map_of(w, along_k, swapped ? shape.left : shape.right, "w");
  kernel.left_map = swapped ? w_map : x_map;
  kernel.right_map = swapped ? x_map : w_map;
  (swapped ? kernel.left : kernel.right).batch_stride = 1;  // there is more than one; the map has the stride
  kernel.out = out_of(args.out, args.accumulate);
  kernel.k = static_cast<int>(w.shape[2]);
  switch (variant) {
    case 0:
      return launch_variant<0>(kernel, along_k, device, stream);
    case 1:
      return launch_variant<1>(kernel, along_k, device, stream);
    case 2:
      return launch_variant<2>(kernel, along_k, device, stream);
    default:
      return launch_variant<3>(kernel, along_k, device, stream);
  }
}

void run_variant(const GroupedGemmArgs& args, int variant, void* stream) {
  const Problem problem = check_limits(args);
  const cuda::Device device = cuda::require_sm90(kOp);
  require(variant >= 0 && variant < kVariantCount && problem.rows > 0 && problem.experts > 0 && problem.n > 0 &&
              problem.k > 0,
          kOp, ": variant ", variant, " cannot run this problem");
  run(args, variant, device, stream);
}

}  // namespace glm5::grouped_gemm_sm90

namespace glm5 {

void grouped_gemm_cuda(const GroupedGemmArgs& args, void* stream) {
  using namespace grouped_gemm_sm90;
  const Problem problem = check_limits(args);
  if (problem.rows == 0 || problem.n == 0) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  if (problem.experts == 0 || problem.k == 0) return clear_out(args, stream);
  run(args, choose_variant(problem.rows, problem.experts, device.sms), device, stream);
}

}  // namespace glm5
