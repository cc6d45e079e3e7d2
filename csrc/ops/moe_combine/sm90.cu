// moe_combine on sm_90a. Forward: a thread has 8 columns of a token and adds up its rows; the loads of all rows are
// independent, so that many are on their way. Bound by memory: topk + 1 rows for each token (the slots and weights are
// the same for a block), 4096 tokens of 6144 x (8 + 1) rows of 12 KiB: 453 MB, 94 us at 4.8 TB/s; calculated, not
// measured.
//
// Backward: whose each row is, found by all places at once, the last of several winning (an integer maximum: no order
// can be seen); then a block per 8 x 256 columns of a row, and a warp per product of d_weights.
#include "core/error.h"
#include "cuda/fp8_pieces.cuh"
#include "cuda/launch.h"
#include "ops/moe_combine/moe_combine.h"

namespace glm5 {
namespace {

struct Config {
  static constexpr int kThreads = 128;
  static constexpr i64 kColumns = kThreads * cuda::kPiece;  // of a block
  static constexpr int kWarps = kThreads / 32;
};

// Where a thread's 8 columns are.
struct Place {
  i64 row, col, count;

  __device__ __forceinline__ explicit Place(i64 hidden) {
    const u32 strips = static_cast<u32>(ceil_div(hidden, Config::kColumns));
    row = blockIdx.x / strips;
    col = i64{blockIdx.x % strips} * Config::kColumns + threadIdx.x * cuda::kPiece;
    count = hidden - col;
  }
};

__global__ __launch_bounds__(Config::kThreads)
void moe_combine_kernel(const __grid_constant__ MoeCombineArgs args) {
  const Place place(args.inputs.hidden());
  if (place.count <= 0) return;
  f32 sums[cuda::kPiece] = {};
#pragma unroll 8
  for (i64 k = 0; k < args.inputs.topk(); ++k) {
    const i64 row = args.inputs.row_of(place.row, k);
    if (row < 0) continue;
    const f32 weight = args.inputs.weight_of(place.row, k);
    const auto piece = cuda::load_piece(args.inputs.rows.at(row, place.col), place.count);
#pragma unroll
    for (int i = 0; i < cuda::kPiece; ++i) sums[i] = __fmaf_rn(weight, to_f32(piece.values[i]), sums[i]);
  }
  if (args.shared.exists()) {
    const auto piece = cuda::load_piece(args.shared.at(place.row, place.col), place.count);
#pragma unroll
    for (int i = 0; i < cuda::kPiece; ++i) sums[i] = __fadd_rn(sums[i], to_f32(piece.values[i]));
  }
  cuda::Piece<bf16> out;
#pragma unroll
  for (int i = 0; i < cuda::kPiece; ++i) out.values[i] = to_bf16(sums[i]);
  cuda::store_piece(args.out.at(place.row, place.col), out, place.count);
}

__global__ __launch_bounds__(Config::kThreads) void forget_kernel(Tensor<i32, 1> owners) {
  const i64 row = i64{blockIdx.x} * Config::kThreads + threadIdx.x;
  if (row < owners.shape[0]) *owners.at(row) = -1;
}

__global__ __launch_bounds__(Config::kThreads)
void owners_kernel(const __grid_constant__ MoeCombineBwdArgs args) {
  const i64 place = i64{blockIdx.x} * Config::kThreads + threadIdx.x, topk = args.inputs.topk();
  if (place >= args.inputs.tokens() * topk) return;
  const i64 row = args.inputs.row_of(place / topk, place % topk);
  if (row >= 0) atomicMax(owners_of(args).at(row), static_cast<i32>(place));
}

__global__ __launch_bounds__(Config::kThreads)
void rows_kernel(const __grid_constant__ MoeCombineBwdArgs args) {
  const Place place(args.inputs.hidden());
  if (place.count <= 0) return;
  const i64 owner = *owners_of(args).at(place.row), topk = args.inputs.topk();
  cuda::Piece<bf16> piece = {};
  if (owner >= 0) {
    const f32 weight = args.inputs.weight_of(owner / topk, owner % topk);
    piece = cuda::load_piece(args.d_out.at(owner / topk, place.col), place.count);
#pragma unroll
    for (int i = 0; i < cuda::kPiece; ++i) piece.values[i] = to_bf16(__fmul_rn(weight, to_f32(piece.values[i])));
  }
  cuda::store_piece(args.d_rows.at(place.row, place.col), piece, place.count);
}

// The first `count` of two neighbours, as bits; zeros for the others.
__device__ __forceinline__ u32 load_pair(const bf16* x, i64 count) {
  if (count >= 2 && cuda::is_aligned(x, 4)) return __ldg(reinterpret_cast<const u32*>(x));
  return u32{x[0].bits} | (count >= 2 ? u32{x[1].bits} << 16 : 0);
}

// Two chains of the 64 are a lane's: columns 2 lane and 2 lane + 1 of every 64.
__device__ __forceinline__ f32 dot(const bf16* x, const bf16* y, i64 hidden, int lane) {
  f32 chains[2] = {};
#pragma unroll 4
  for (i64 begin = 2 * lane; begin < hidden; begin += kCombineChains) {
    const u32 xs = load_pair(x + begin, hidden - begin), ys = load_pair(y + begin, hidden - begin);
    chains[0] = __fmaf_rn(f32_of_bits(xs << 16), f32_of_bits(ys << 16), chains[0]);
    chains[1] = __fmaf_rn(f32_of_bits(xs & 0xffff0000), f32_of_bits(ys & 0xffff0000), chains[1]);
  }
#pragma unroll
  for (int half = 16; half > 0; half /= 2) {
#pragma unroll
    for (int i = 0; i < 2; ++i) chains[i] = __fadd_rn(chains[i], __shfl_xor_sync(0xffffffff, chains[i], half));
  }
  return __fadd_rn(chains[0], chains[1]);
}

__global__ __launch_bounds__(Config::kThreads)
void weights_kernel(const __grid_constant__ MoeCombineBwdArgs args) {
  const i64 place = i64{blockIdx.x} * Config::kWarps + threadIdx.x / 32, topk = args.inputs.topk();
  if (place >= args.inputs.tokens() * topk) return;
  const i64 token = place / topk, k = place % topk, row = args.inputs.row_of(token, k);
  const int lane = threadIdx.x % 32;
  const f32 product =
      row < 0 ? 0.0f : dot(args.d_out.at(token, 0), args.inputs.rows.at(row, 0), args.inputs.hidden(), lane);
  if (lane == 0) *args.d_weights.at(token, k) = product;
}

template <auto kKernel, class Args>
void launch(const char* op, const Args& args, i64 blocks, const cuda::Device& device, void* stream) {
  require(blocks < (i64{1} << 31), op, ": rows and slots must need fewer than 2^31 blocks, got ", blocks);
  if (blocks == 0) return;
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(blocks)), .threads = Config::kThreads};
  cuda::launch<kKernel>(op, device, shape, stream, args);
}

}  // namespace

void moe_combine_cuda(const MoeCombineArgs& args, void* stream) {
  constexpr const char* kOp = "moe_combine";
  const cuda::Device device = cuda::require_sm90(kOp);
  const i64 strips = ceil_div(args.inputs.hidden(), Config::kColumns);
  launch<moe_combine_kernel>(kOp, args, args.inputs.tokens() * strips, device, stream);
}

void moe_combine_bwd_cuda(const MoeCombineBwdArgs& args, void* stream) {
  constexpr const char* kOp = "moe_combine_bwd";
  const MoeCombineInputs& inputs = args.inputs;
  const i64 rows = inputs.rows.shape[0], places = inputs.tokens() * inputs.topk();
  require(places < (i64{1} << 31), kOp, ": slots must have fewer than 2^31 places, got ", places);
  const i64 needed = moe_combine_bwd_workspace_bytes(rows);
  require(args.workspace.shape[0] >= needed, kOp, ": workspace must be u8[", needed, "] or longer; got u8[",
          args.workspace.shape[0], "]");
  const cuda::Device device = cuda::require_sm90(kOp);
  launch<forget_kernel>(kOp, owners_of(args), ceil_div(rows, Config::kThreads), device, stream);
  launch<owners_kernel>(kOp, args, ceil_div(places, Config::kThreads), device, stream);
  launch<rows_kernel>(kOp, args, rows * ceil_div(inputs.hidden(), Config::kColumns), device, stream);
  if (args.d_weights.exists())
    launch<weights_kernel>(kOp, args, ceil_div(places, Config::kWarps), device, stream);
}

}  // namespace glm5
