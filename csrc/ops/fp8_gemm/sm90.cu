// fp8_gemm on sm_90a: limits, tensor maps, choice of the variant, and the kernels whose M operand is a (config.h).
#include "ops/fp8_gemm/fp8_gemm.h"

#include "cuda/tma_descriptor.h"
#include "ops/fp8_gemm/kernel_sm90.cuh"
#include "ops/fp8_gemm/launch_sm90.h"

namespace glm5::fp8_gemm_sm90 {
namespace {

constexpr const char* kOp = "fp8_gemm";

struct Problem {
  i64 m, n, k;
};

// The limits of these kernels; those of the op were checked by the caller.
Problem check_limits(const Fp8GemmArgs& args) {
  const Problem problem{args.a.shape[0], args.b.shape[0], args.a.shape[1]};
  cuda::require_gemm_size(kOp, problem.m, problem.n, problem.k);
  require(args.out.dtype == Float::bf16 || args.out.dtype == Float::f32, kOp, ": out must be bf16 or f32");
  return problem;
}

CUtensorMap operand_map(const Tensor<const e4m3, 2>& operand, int box_rows, const char* name) {
  return cuda::tma_descriptor({.dtype = CU_TENSOR_MAP_DATA_TYPE_UINT8,
                               .element_bytes = 1,
                               .data = operand.data,
                               .rows = operand.shape[0],
                               .columns = operand.shape[1],
                               .row_stride = operand.stride[0],
                               .box_rows = box_rows,
                               .box_columns = kStepBytes,
                               .swizzle = CU_TENSOR_MAP_SWIZZLE_128B},
                              kOp, name);
}

// Scales per row are column-major: the copy engine sees one row per group.
CUtensorMap scales_map(const Tensor<const f32, 2>& scales, int box_rows, const char* name) {
  require(scales.shape[0] == 1 || scales.stride[0] == 1, kOp, ": ", name, " must have unit stride along its rows, got ",
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
                              kOp, name);
}

KernelArgs kernel_args(const Fp8GemmArgs& args, const Problem& problem, const Config& config) {
  const i64 column_groups = config.right_tiles / config.cluster;
  require(config.left_tiles * column_groups < (i64{1} << 31), kOp, ": m = ", problem.m, " and n = ", problem.n,
          " make more tiles than 32 bits count");
  const Variant& variant = kVariants[config.variant];
  const bool swapped = variant.schedule == Schedule::swap_ab;
  const int left_box = variant.left / variant.cluster;  // blocks of a cluster share the loading
  const int out_bytes = args.out.dtype == Float::f32 ? 4 : 2;

  KernelArgs kernel{};
  (swapped ? kernel.right : kernel.left) = operand_map(args.a, swapped ? variant.right : left_box, "a");
  (swapped ? kernel.left : kernel.right) = operand_map(args.b, swapped ? left_box : variant.right, "b");
  (swapped ? kernel.right_scales : kernel.left_scales) = scales_map(args.a_scales, config.tile_m, "a_scales");
  if (args.b_scales_per_row) {
    (swapped ? kernel.left_scales : kernel.right_scales) = scales_map(args.b_scales, config.tile_n, "b_scales");
  } else {
    kernel.block_scales = args.b_scales;
  }
  kernel.out = {.data = args.out.data,
                .row_stride = args.out.stride[0],
                .m = static_cast<int>(problem.m),
                .n = static_cast<int>(problem.n),
                .is_f32 = args.out.dtype == Float::f32,
                .accumulate = args.accumulate,
                .rows_are_aligned = reinterpret_cast<std::uintptr_t>(args.out.data) % 16 == 0 &&
                                    (problem.m == 1 || args.out.stride[0] * out_bytes % 16 == 0)};
  kernel.grid = {static_cast<int>(config.left_tiles), static_cast<int>(column_groups), config.band};
  kernel.groups = static_cast<int>(ceil_div(problem.k, kFp8Group));
  return kernel;
}

void launch_rows(const KernelArgs& args, const Config& config, bool per_row, const cuda::Device& device, void* stream) {
  switch (config.variant + (per_row ? kVariantCount : 0)) {
    case 4:
      return launch_kernel<4, false>(args, config, device, stream);
    case 5:
      return launch_kernel<5, false>(args, config, device, stream);
    case 6:
      return launch_kernel<6, false>(args, config, device, stream);
    case 7:
      return launch_kernel<7, false>(args, config, device, stream);
    case 8:
      return launch_kernel<8, false>(args, config, device, stream);
    case 9:
      return launch_kernel<9, false>(args, config, device, stream);
    case 5 + kVariantCount:
      return launch_kernel<5, true>(args, config, device, stream);
    case 8 + kVariantCount:
      return launch_kernel<8, true>(args, config, device, stream);
    case 9 + kVariantCount:
      return launch_kernel<9, true>(args, config, device, stream);
    default:
      require(false, kOp, ": variant ", config.variant, " is not built for these scales");
  }
}

// An empty sum: zeros, or nothing to add.
void clear_out(const Fp8GemmArgs& args, const Problem& problem, void* stream) {
  if (args.accumulate) return;
  const i64 bytes = args.out.dtype == Float::f32 ? 4 : 2;
  cuda::clear_rows(kOp, args.out.data, args.out.stride[0] * bytes, problem.n * bytes, problem.m, stream);
}

void run(const Fp8GemmArgs& args, const Problem& problem, const Config& config, const cuda::Device& device,
         void* stream) {
  const KernelArgs kernel = kernel_args(args, problem, config);
  if (config.schedule == Schedule::swap_ab) return launch_swap_ab(kernel, config, device, stream);
  launch_rows(kernel, config, args.b_scales_per_row, device, stream);
}

}  // namespace

void run_variant(const Fp8GemmArgs& args, int variant, void* stream) {
  const Problem problem = check_limits(args);
  const cuda::Device device = cuda::require_sm90(kOp);
  require(variant >= 0 && variant < kVariantCount && can_run(kVariants[variant], args.b_scales_per_row, device.sms),
          kOp, ": variant ", variant, " cannot run this problem");
  require(problem.m > 0 && problem.n > 0 && problem.k > 0, kOp, ": a given variant needs m, n, k > 0");
  run(args, problem, config_of(variant, problem.m, problem.n, args.b_scales_per_row, device.sms), device, stream);
}

}  // namespace glm5::fp8_gemm_sm90

namespace glm5 {

void fp8_gemm_cuda(const Fp8GemmArgs& args, void* stream) {
  using namespace fp8_gemm_sm90;
  const Problem problem = check_limits(args);
  if (problem.m == 0 || problem.n == 0) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  if (problem.k == 0) return clear_out(args, problem, stream);
  const Config config = choose_config(problem.m, problem.n, problem.k, args.b_scales_per_row, device.sms);
  run(args, problem, config, device, stream);
}

}  // namespace glm5
