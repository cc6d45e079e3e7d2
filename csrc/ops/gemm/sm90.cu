// gemm on sm_90a: limits, tensor maps, choice of the variant, and the bf16 kernels whose M operand is a (config.h).
#include "ops/gemm/sm90.h"

#include "cuda/tma_descriptor.h"
#include "ops/gemm/kernel_sm90.cuh"
#include "ops/gemm/launch_sm90.h"

namespace glm5::gemm_sm90 {
namespace {

constexpr const char* kOp = "gemm";

struct Problem {
  i64 batch, m, n, k;
  bool is_empty() const { return batch == 0 || m == 0 || n == 0; }
};

// The limits of the CUDA kernels; that shapes agree was checked by the caller.
Problem check_limits(const GemmArgs& args) {
  const Problem problem{args.a.shape[0], args.a.shape[1], args.b.shape[1], args.a.shape[2]};
  cuda::require_gemm_size(kOp, problem.m, problem.n, problem.k);
  require(args.a.dtype != Float::f16 && args.a.dtype == args.b.dtype, kOp, ": a and b must both be bf16 or both f32");
  require(args.out.dtype != Float::f16, kOp, ": out must be bf16 or f32, got f16");
  require(problem.n <= 1 || args.out.stride[2] == 1, kOp, ": out must have unit stride along n, got ",
          args.out.stride[2]);
  return problem;
}

// How a kernel reads an operand.
struct Access {
  Operand operand;
  Major major;  // of its lines in shared memory
};

// Whether boxes whose lines run along dimension `unit` (1: rows, 2: k) can come by the copy engine. The strides of
// dimensions of one element mean nothing.
bool is_aligned(const FloatTensor<3>& operand, int unit) {
  constexpr i64 kElements = cuda::kTmaAlignment / sizeof(bf16);
  const int other = 3 - unit;
  const auto fits = [&](int d) {
    return operand.shape[d] == 1 || (operand.stride[d] > 0 && operand.stride[d] % kElements == 0);
  };
  const bool batch_fits = operand.stride[0] == 0 || fits(0);
  return reinterpret_cast<std::uintptr_t>(operand.data) % cuda::kTmaAlignment == 0 && batch_fits && fits(other) &&
         (operand.shape[unit] == 1 || operand.stride[unit] == 1);
}

Access access_of(const FloatTensor<3>& operand) {
  const bool along_k = is_aligned(operand, 2), along_rows = is_aligned(operand, 1);
  return {.operand = {.data = static_cast<const bf16*>(operand.data),
                      .batch_stride = operand.stride[0],
                      .row_stride = operand.stride[1],
                      .k_stride = operand.stride[2],
                      .rows = static_cast<int>(operand.shape[1]),
                      .by_hand = !along_k && !along_rows},
          .major = along_rows && !along_k ? Major::rows : Major::k};
}

CUtensorMap map_of(const FloatTensor<3>& tensor, const Access& access, int tile_rows, const char* name) {
  if (access.operand.by_hand) return {};
  const bool along_k = access.major == Major::k;
  const int unit = along_k ? 2 : 1, other = 3 - unit;
  const int rows = static_cast<int>(smaller(tile_rows, kBoxRows));
  return cuda::tma_descriptor({.dtype = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                               .element_bytes = sizeof(bf16),
                               .data = tensor.data,
                               .rows = tensor.shape[other],
                               .columns = tensor.shape[unit],
                               .row_stride = tensor.stride[other],
                               .box_rows = along_k ? rows : kStepK,
                               .box_columns = along_k ? kStepK : rows,
                               .swizzle = CU_TENSOR_MAP_SWIZZLE_128B,
                               .batches = tensor.stride[0] == 0 ? 1 : tensor.shape[0],
                               .batch_stride = tensor.stride[0]},
                              kOp, name);
}

cuda::TileOut out_of(const GemmArgs& args, const Problem& problem) {
  const bool is_f32 = args.out.dtype == Float::f32;
  const i64 in_16_bytes = is_f32 ? 4 : 8;
  const bool aligned = reinterpret_cast<std::uintptr_t>(args.out.data) % 16 == 0 &&
                       (problem.m == 1 || args.out.stride[1] % in_16_bytes == 0) &&
                       (problem.batch == 1 || args.out.stride[0] % in_16_bytes == 0);
  return {.data = args.out.data,
          .row_stride = args.out.stride[1],
          .m = static_cast<int>(problem.m),
          .n = static_cast<int>(problem.n),
          .is_f32 = is_f32,
          .accumulate = args.accumulate,
          .rows_are_aligned = aligned};
}

template <int kVariant>
void launch_variant(const KernelArgs& args, const Config& config, const Layout& layout, const cuda::Device& device,
                    void* stream) {
  if (!layout.transposed_a && !layout.transposed_b) {
    return launch_kernel<kVariant, Major::k, Major::k>(args, config, device, stream);
  }
  if (!layout.transposed_a) return launch_kernel<kVariant, Major::k, Major::rows>(args, config, device, stream);
  if constexpr (kVariants[kVariant].transposed_a) {
    if (layout.transposed_b) return launch_kernel<kVariant, Major::rows, Major::rows>(args, config, device, stream);
    return launch_kernel<kVariant, Major::rows, Major::k>(args, config, device, stream);
  }
  require(false, kOp, ": variant ", kVariant, " is not built for a with unit stride along m");
}

struct Plan {
  Problem problem;
  Access a, b;
  Layout layout;
};

Plan plan_of(const GemmArgs& args, const Problem& problem) {
  const Access a = access_of(args.a), b = access_of(args.b);
  return {problem,
          a,
          b,
          {.transposed_a = a.major == Major::rows,
           .transposed_b = b.major == Major::rows,
           .by_hand = a.operand.by_hand || b.operand.by_hand}};
}

void run(const GemmArgs& args, const Plan& plan, const Config& config, const cuda::Device& device, void* stream) {
  const Problem& problem = plan.problem;
  const cuda::TileGrid grid{static_cast<int>(config.left_tiles / config.cluster), static_cast<int>(config.right_tiles),
                            config.band};
  const i64 tiles = problem.batch * (config.left_tiles / config.cluster) * config.right_tiles;
  require(tiles < (i64{1} << 31) - 1024, kOp, ": batch = ", problem.batch, ", m = ", problem.m, " and n = ", problem.n,
          " make more tiles than 32 bits count");
  const bool swapped = config.schedule == Schedule::swap_ab;
  KernelArgs kernel{};
  (swapped ? kernel.right_map : kernel.left_map) = map_of(args.a, plan.a, config.tile_m, "a");
  (swapped ? kernel.left_map : kernel.right_map) = map_of(args.b, plan.b, config.tile_n, "b");
  (swapped ? kernel.right : kernel.left) = plan.a.operand;
  (swapped ? kernel.left : kernel.right) = plan.b.operand;
  kernel.out = out_of(args, problem);
  kernel.out_batch_stride = args.out.stride[0];
  kernel.grid = grid;
  kernel.tiles = static_cast<int>(tiles);
  kernel.k = static_cast<int>(problem.k);
  switch (config.variant) {
    case 4:
      return launch_variant<4>(kernel, config, plan.layout, device, stream);
    case 5:
      return launch_variant<5>(kernel, config, plan.layout, device, stream);
    case 6:
      return launch_variant<6>(kernel, config, plan.layout, device, stream);
    default:
      return launch_swap_ab(kernel, config, plan.layout, device, stream);
  }
}

// An empty sum: zeros, or nothing to add.
void clear_out(const GemmArgs& args, const Problem& problem, void* stream) {
  if (args.accumulate) return;
  const i64 bytes = args.out.dtype == Float::f32 ? 4 : 2;
  for (i64 p = 0; p < problem.batch; ++p)
    cuda::clear_rows(kOp, matrix_of(args.out, p).data, args.out.stride[1] * bytes, problem.n * bytes, problem.m,
                     stream);
}

}  // namespace

void run_variant(const GemmArgs& args, int variant, void* stream) {
  const Problem problem = check_limits(args);
  const cuda::Device device = cuda::require_sm90(kOp);
  require(!problem.is_empty() && problem.k > 0 && args.a.dtype == Float::bf16, kOp,
          ": a given variant needs bf16 operands and batch, m, n, k > 0");
  const Plan plan = plan_of(args, problem);
  require(variant >= 0 && variant < kVariantCount && can_run(kVariants[variant], plan.layout, device.sms), kOp,
          ": variant ", variant, " cannot run this problem");
  run(args, plan, config_of(variant, problem.m, problem.n, problem.batch, device.sms), device, stream);
}

}  // namespace glm5::gemm_sm90

namespace glm5 {

void gemm_cuda(const GemmArgs& args, void* stream) {
  using namespace gemm_sm90;
  const Problem problem = check_limits(args);
  if (problem.is_empty()) return;
  const cuda::Device device = cuda::require_sm90(kOp);
  if (problem.k == 0) return clear_out(args, problem, stream);
  if (args.a.dtype == Float::f32) return gemm_f32_cuda(args, static_cast<cudaStream_t>(stream));
  const Plan plan = plan_of(args, problem);
  const Config config = choose_config(problem.m, problem.n, problem.k, problem.batch, plan.layout, device.sms);
  run(args, plan, config, device, stream);
}

}  // namespace glm5
