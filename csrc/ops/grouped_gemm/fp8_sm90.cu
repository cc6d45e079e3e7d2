// grouped_gemm on sm_90a for e4m3: fp8_gemm's body (cuda/gemm_fp8.cuh) over the tiles of all experts.
#include "cuda/gemm_fp8.cuh"
#include "cuda/tma_descriptor.h"
#include "ops/grouped_gemm/experts_sm90.cuh"

namespace glm5::grouped_gemm_sm90 {
namespace {

using cuda::gemm_fp8::SharedStorage;
using cuda::gemm_fp8::TileCorner;

template <int kVariantOf>
struct Shape {
  static constexpr cuda::GemmVariant kVariant = kFp8Variants[kVariantOf];
};

struct Fp8Args : cuda::gemm_fp8::KernelArgs, ExpertArgs {
  i64 expert_scales;  // from one expert's block scales to the next one's
};

template <class T>
struct ExpertWalk {
  using Args = Fp8Args;
  static constexpr bool kHasExperts = true;
  static constexpr ClusterTile kTile = cluster_tile(T::kShape, false);

  __device__ __forceinline__ static TileCorner corner_of(const Fp8Args& args, int tile, u32 rank) {
    const TileRows at = tile_rows<kTile.rows, kTile.columns>(args, tile);
    if constexpr (T::kSwapped) {
      return {at.column, at.row, args.n - at.column, at.expert, at.row_end};
    } else {
      return {at.row, at.column + static_cast<int>(rank) * T::kRight, at.row_end - at.row, at.expert, at.row_end};
    }
  }
  __device__ __forceinline__ static i64 first_scale(const Fp8Args& args, const TileCorner& corner) {
    return corner.expert * args.expert_scales;
  }
};

template <int kVariant>
__global__ __launch_bounds__(kFp8Variants[kVariant].threads(),
                             1) void grouped_fp8_gemm_kernel(const __grid_constant__ Fp8Args args) {
  using T = cuda::gemm_fp8::Tile<Shape<kVariant>, false>;
  static_assert(sizeof(SharedStorage<T>) == cuda::fp8_smem_bytes(kFp8Variants[kVariant], false));
  clear_rest(args, args.out);
  cuda::gemm_fp8::run<T, ExpertWalk<T>>(args);
}

template <int kVariant>
void launch(const Fp8Args& args, const cuda::Device& device, void* stream) {
  constexpr cuda::GemmVariant kShape = kFp8Variants[kVariant];
  const int grid =
      grid_of(kShape, cluster_tile(kShape, false), args.experts.rows, args.experts.count, args.n, device.sms);
  cuda::launch<grouped_fp8_gemm_kernel<kVariant>>(kOp, device,
                                                  {.blocks = dim3(grid),
                                                   .threads = kShape.threads(),
                                                   .smem_bytes = cuda::fp8_smem_bytes(kShape, false),
                                                   .cluster = kShape.cluster},
                                                  stream, args);
}

cuda::TmaMatrix values_matrix(const e4m3* data, i64 rows, i64 columns, i64 row_stride, int box_rows) {
  return {.dtype = CU_TENSOR_MAP_DATA_TYPE_UINT8,
          .element_bytes = 1,
          .data = data,
          .rows = rows,
          .columns = columns,
          .row_stride = row_stride,
          .box_rows = box_rows,
          .box_columns = cuda::kStepBytes,
          .swizzle = CU_TENSOR_MAP_SWIZZLE_128B};
}

// Scales of rows are column-major: the copy engine sees one row per group.
CUtensorMap scales_map(const Tensor<const f32, 2>& scales, int box_rows) {
  require(scales.shape[0] == 1 || scales.stride[0] == 1, kOp, ": row_scales must have unit stride along its rows, got ",
          scales.stride[0]);
  return cuda::tma_descriptor({.dtype = CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                               .element_bytes = 4,
                               .data = scales.data,
                               .rows = scales.shape[1],
                               .columns = scales.shape[0],
                               .row_stride = scales.stride[1],
                               .box_rows = 1,
                               .box_columns = box_rows,
                               .swizzle = CU_TENSOR_MAP_SWIZZLE_NONE},
                              kOp, "row_scales");
}

}  // namespace

void launch_fp8(const GroupedGemmArgs& args, int variant, const cuda::Device& device, void* stream) {
  const cuda::GemmVariant& shape = kFp8Variants[variant];
  const bool swapped = shape.schedule == Schedule::swap_ab;
  const Tensor<const e4m3, 2> rows = args.rows.as<e4m3>();
  const Tensor<const e4m3, 3> w = args.w.as<e4m3>();
  // Blocks of a cluster share the loading of the left tile.
  const int left_box = shape.left / shape.cluster;
  const CUtensorMap rows_map = cuda::tma_descriptor(
      values_matrix(rows.data, rows.shape[0], rows.shape[1], rows.stride[0], swapped ? shape.right : left_box), kOp,
      "rows");
  cuda::TmaMatrix weights =
      values_matrix(w.data, w.shape[1], w.shape[2], w.stride[1], swapped ? left_box : shape.right);
  weights.batches = w.shape[0];
  weights.batch_stride = w.stride[0];
  const CUtensorMap w_map = cuda::tma_descriptor(weights, kOp, "w");

  Fp8Args kernel{};
  static_cast<ExpertArgs&>(kernel) = expert_args(args);
  cuda::gemm_fp8::KernelArgs& product = kernel;
  product.left = swapped ? w_map : rows_map;
  product.right = swapped ? rows_map : w_map;
  (swapped ? product.right_scales : product.left_scales) =
      scales_map(args.row_scales, swapped ? shape.right : shape.left);
  product.block_scales = {args.w_scales.data,
                          {args.w_scales.shape[1], args.w_scales.shape[2]},
                          {args.w_scales.stride[1], args.w_scales.stride[2]}};
  kernel.expert_scales = args.w_scales.stride[0];
  product.out = out_of(args.out, args.accumulate);
  product.groups = static_cast<int>(ceil_div(w.shape[2], kFp8Group));
  switch (variant) {
    case 0:
      return launch<0>(kernel, device, stream);
    case 1:
      return launch<1>(kernel, device, stream);
    case 2:
      return launch<2>(kernel, device, stream);
    default:
      return launch<3>(kernel, device, stream);
  }
}

}  // namespace glm5::grouped_gemm_sm90
