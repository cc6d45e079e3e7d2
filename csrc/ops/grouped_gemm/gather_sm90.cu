// Brings the rows that row_tokens chooses, and their scales, into the order of out: a warp for each row, 16 bytes for
// each lane at a time where rows are aligned. Rows of a token that does not exist become zeros.
#include "cuda/launch.h"
#include "ops/grouped_gemm/launch_sm90.h"

namespace glm5::grouped_gemm_sm90 {
namespace {

constexpr int kThreads = 256;

struct GatherArgs {
  const u8* from;
  i64 from_stride;  // in bytes
  u8* to;
  int row_bytes, rows, tokens, groups;
  bool is_aligned;
  const i32* row_tokens;
  i64 row_tokens_stride;
  Tensor<const f32, 2> from_scales;
  f32* to_scales;  // [groups][to_column]
  i64 to_column;
};

__global__ __launch_bounds__(kThreads) void grouped_gemm_gather_kernel(const __grid_constant__ GatherArgs args) {
  const int row = blockIdx.x * (kThreads / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= args.rows) return;
  const int token = args.row_tokens[row * args.row_tokens_stride];
  const bool exists = token >= 0 && token < args.tokens;
  const u8* from = args.from + (exists ? token : 0) * args.from_stride;
  u8* to = args.to + i64{row} * args.row_bytes;
  if (args.is_aligned) {
    for (int i = 16 * lane; i < args.row_bytes; i += 512) {
      *reinterpret_cast<uint4*>(to + i) = exists ? *reinterpret_cast<const uint4*>(from + i) : uint4{};
    }
  } else {
    for (int i = lane; i < args.row_bytes; i += 32) to[i] = exists ? from[i] : 0;
  }
  for (int g = lane; g < args.groups; g += 32) {
    args.to_scales[g * args.to_column + row] = exists ? *args.from_scales.at(token, g) : 0.0f;
  }
}

}  // namespace

GroupedGemmArgs gather(const GroupedGemmArgs& args, const cuda::Device& device, void* stream) {
  const i64 rows = args.out.shape[0], k = args.rows.shape[1], size = args.rows.is_e4m3 ? 1 : 2;
  const i64 groups = args.rows.is_e4m3 ? ceil_div(k, kFp8Group) : 0, column = round_up(rows, kScaleRowsPad);
  require(args.workspace.shape[0] >= grouped_gemm_cuda_workspace_bytes(args.experts(), rows, args.w.shape[1], k, true),
          kOp, ": workspace is too short, u8[", args.workspace.shape[0], "]");
  f32* scales = reinterpret_cast<f32*>(args.workspace.data + round_up(rows * k * size, 128));
  const auto address = reinterpret_cast<std::uintptr_t>(args.rows.data);
  const GatherArgs kernel{.from = static_cast<const u8*>(args.rows.data),
                          .from_stride = args.rows.stride[0] * size,
                          .to = args.workspace.data,
                          .row_bytes = static_cast<int>(k * size),
                          .rows = static_cast<int>(rows),
                          .tokens = static_cast<int>(args.rows.shape[0]),
                          .groups = static_cast<int>(groups),
                          .is_aligned = (address | args.rows.stride[0] * size | k * size) % 16 == 0,
                          .row_tokens = args.row_tokens.data,
                          .row_tokens_stride = args.row_tokens.stride[0],
                          .from_scales = args.row_scales,
                          .to_scales = scales,
                          .to_column = column};
  const i64 blocks = ceil_div(rows, kThreads / 32);
  cuda::launch<grouped_gemm_gather_kernel>(
      kOp, device, {.blocks = dim3(static_cast<unsigned>(blocks)), .threads = kThreads}, stream, kernel);
  GroupedGemmArgs moved = args;
  moved.rows = {args.workspace.data, args.rows.is_e4m3, {rows, k}, {k, 1}};
  moved.row_scales = {scales, {rows, groups}, {1, column}};
  return moved;
}

}  // namespace glm5::grouped_gemm_sm90
