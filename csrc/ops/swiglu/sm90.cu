// swiglu on sm_90a: half a warp per 128 outputs of a row, 8 a thread; a block has 16 rows x 128 columns. Bound by
// memory: a thread loads 16 bytes of gate and of up (bf16) and stores 16 bytes of the product, or 8 of e4m3, and
// computes some 30 instructions for each value.
#include "cuda/exp.cuh"
#include "cuda/fp8_pieces.cuh"
#include "cuda/launch.h"
#include "ops/swiglu/check.h"

namespace glm5 {
namespace {

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kRows = kThreads / 16;
};

// Where a thread's 8 columns are. `count` of them exist; none where the row does not.
struct Place {
  i64 row, col, count;

  __device__ __forceinline__ explicit Place(const SwigluInputs& inputs) {
    const u32 strips = static_cast<u32>(ceil_div(inputs.intermediate(), kFp8Group));
    row = i64{blockIdx.x / strips} * Config::kRows + threadIdx.x / 16;
    col = i64{blockIdx.x % strips} * kFp8Group + threadIdx.x % 16 * cuda::kPiece;
    count = row < inputs.rows() ? inputs.intermediate() - col : 0;
  }
};

// As the vectors of the CPU do it: whatever is no number stays.
__device__ __forceinline__ f32 at_most(f32 x, f32 limit) { return limit < x ? limit : x; }
__device__ __forceinline__ f32 at_least(f32 x, f32 limit) { return limit > x ? limit : x; }

struct Pair {
  f32 gate, up;
  __device__ __forceinline__ Pair held(f32 limit) const {
    return {at_most(gate, limit), at_least(at_most(up, limit), -limit)};
  }
};

__device__ __forceinline__ f32 product_of(const Pair& given, f32 limit) {
  const Pair pair = given.held(limit);
  return __fmul_rn(__fdiv_rn(pair.gate, cuda::one_and_exp(-pair.gate)), pair.up);
}

__device__ __forceinline__ Pair gradient_of(const Pair& given, f32 d, f32 limit) {
  const Pair pair = given.held(limit);
  const f32 s = __fdiv_rn(1.0f, cuda::one_and_exp(-pair.gate));
  const f32 slope = __fmul_rn(s, __fmaf_rn(pair.gate, __fsub_rn(1.0f, s), 1.0f));
  const f32 d_gate = __fmul_rn(__fmul_rn(d, pair.up), slope), d_up = __fmul_rn(d, __fmul_rn(pair.gate, s));
  return {given.gate > limit ? 0.0f : d_gate, given.up > limit || -limit > given.up ? 0.0f : d_up};
}

__device__ __forceinline__ void set(bf16& to, f32 x) { to = to_bf16(x); }
__device__ __forceinline__ void set(f32& to, f32 x) { to = x; }

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void swiglu_kernel(const __grid_constant__ SwigluArgs args) {
  const Place place(args.inputs);
  const auto gate_up = args.inputs.gate_up.as<const T>();
  const i64 live = place.row < args.inputs.live_rows() ? place.count : 0;
  const auto gate = cuda::load_piece(gate_up.at(place.row, place.col), live);
  const auto up = cuda::load_piece(gate_up.at(place.row, place.col + args.inputs.intermediate()), live);
  cuda::Piece<bf16> product;
#pragma unroll
  for (int i = 0; i < cuda::kPiece; ++i) {
    const Pair pair{cuda::f32_of(gate.values[i]), cuda::f32_of(up.values[i])};
    product.values[i] = to_bf16(product_of(pair, args.inputs.limit));
  }
  if (args.out.exists()) return cuda::store_piece(args.out.at(place.row, place.col), product, place.count);

  u32 amax = cuda::max_finite(0, product);  // lanes without a row take part in the shuffles
#pragma unroll
  for (int distance = 8; distance > 0; distance /= 2) amax = max(amax, __shfl_xor_sync(0xffffffff, amax, distance));
  if (place.count <= 0) return;
  const f32 scale = fp8_scale(f32_of_bits(amax), args.amax_floor, args.power_of_two);
  if (threadIdx.x % 16 == 0) *args.scales.at(place.row, place.col / kFp8Group) = scale;
  cuda::store_piece(args.values.at(place.row, place.col), product, cuda::Divisor(scale), place.count);
}

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void swiglu_bwd_kernel(const __grid_constant__ SwigluBwdArgs args) {
  const Place place(args.inputs);
  const auto gate_up = args.inputs.gate_up.as<const T>();
  const i64 live = place.row < args.inputs.live_rows() ? place.count : 0;
  const i64 up_col = place.col + args.inputs.intermediate();
  const auto gate = cuda::load_piece(gate_up.at(place.row, place.col), live);
  const auto up = cuda::load_piece(gate_up.at(place.row, up_col), live);
  const auto d_out = cuda::load_piece(args.d_out.at(place.row, place.col), live);
  cuda::Piece<T> d_gate, d_up;
#pragma unroll
  for (int i = 0; i < cuda::kPiece; ++i) {
    const Pair pair{cuda::f32_of(gate.values[i]), cuda::f32_of(up.values[i])};
    const Pair gradient = gradient_of(pair, cuda::f32_of(d_out.values[i]), args.inputs.limit);
    set(d_gate.values[i], live > 0 ? gradient.gate : 0.0f);
    set(d_up.values[i], live > 0 ? gradient.up : 0.0f);
  }
  const auto d_gate_up = args.d_gate_up.as<T>();
  cuda::store_piece(d_gate_up.at(place.row, place.col), d_gate, place.count);
  cuda::store_piece(d_gate_up.at(place.row, up_col), d_up, place.count);
}

template <auto kBf16Kernel, auto kF32Kernel, class Args>
void launch(const char* op, const Args& args, void* stream) {
  check_swiglu(op, args.inputs);
  const cuda::Device device = cuda::require_sm90(op);
  const i64 blocks = ceil_div(args.inputs.rows(), Config::kRows) * ceil_div(args.inputs.intermediate(), kFp8Group);
  require(blocks < (i64{1} << 31), op, ": gate_up must have fewer than 2^31 tiles, got ", blocks);
  if (blocks == 0) return;
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(blocks)), .threads = Config::kThreads};
  if (args.inputs.gate_up.dtype == Float::bf16)
    cuda::launch<kBf16Kernel>(op, device, shape, stream, args);
  else
    cuda::launch<kF32Kernel>(op, device, shape, stream, args);
}

}  // namespace

void swiglu_cuda(const SwigluArgs& args, void* stream) {
  launch<swiglu_kernel<bf16>, swiglu_kernel<f32>>("swiglu", args, stream);
}

void swiglu_bwd_cuda(const SwigluBwdArgs& args, void* stream) {
  launch<swiglu_bwd_kernel<bf16>, swiglu_bwd_kernel<f32>>("swiglu_bwd", args, stream);
}

}  // namespace glm5
