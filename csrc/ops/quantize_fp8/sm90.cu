// quantize_fp8 on sm_90a: three kernels that read x once, into registers, and are bound by memory.
//
//   1x128     half a warp per group, 8 values a thread; a block has 16 rows x 2 groups.
//   128x128   a block per scale, 64 values a thread.
//   128x1     a block per 128 rows x 64 columns; bytes are turned in shared memory and leave as 128 bytes of a column.
//
// A thread always holds pieces of 8 neighbours of a row (cuda/fp8_pieces.cuh).
#include "core/fp8_check.h"
#include "cuda/fp8_columns.cuh"
#include "cuda/launch.h"
#include "ops/quantize_fp8/quantize_fp8.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "quantize_fp8";

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kRowTile = kThreads / 16;    // 1x128: rows of a block, half a warp each
  static constexpr int kRowGroups = 2;              // and groups of a row: two loads under way in each thread
  static constexpr int kBlockRows = kThreads / 16;  // 128x128: rows that a block of threads reads at a time
  static constexpr int kRowsPerThread = 4;          // 128x1: they make one word of a turned column
};

// ---- 1x128 ----

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void quantize_rows_kernel(const __grid_constant__ QuantizeFp8Args args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const u32 column_tiles = static_cast<u32>(ceil_div(cols, Config::kRowGroups * kFp8Group));
  const u32 row_tile = blockIdx.x / column_tiles, column_tile = blockIdx.x % column_tiles;
  const i64 row = i64{row_tile} * Config::kRowTile + threadIdx.x / 16;
  const i64 lane = threadIdx.x % 16;
  const i64 first = i64{column_tile} * (Config::kRowGroups * kFp8Group) + lane * cuda::kPiece;
  const auto x = args.x.as<const T>();
  const i64 live_cols = row < rows ? cols : 0;  // lanes without a row take part in the shuffles

  cuda::Piece<T> pieces[Config::kRowGroups];
#pragma unroll
  for (int g = 0; g < Config::kRowGroups; ++g) {
    const i64 col = first + g * kFp8Group;
    pieces[g] = cuda::load_piece(x.at(row, col), live_cols - col);
  }
#pragma unroll
  for (int g = 0; g < Config::kRowGroups; ++g) {
    u32 amax = cuda::max_finite(0, pieces[g]);
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) amax = max(amax, __shfl_xor_sync(0xffffffff, amax, distance));
    const i64 col = first + g * kFp8Group;
    if (col - lane * cuda::kPiece >= live_cols) continue;
    const f32 scale = fp8_scale(f32_of_bits(amax), args.amax_floor, args.power_of_two);
    if (lane == 0) *args.scales.at(row, col / kFp8Group) = scale;
    cuda::store_piece(args.values.at(row, col), pieces[g], cuda::Divisor(scale), live_cols - col);
  }
}

// ---- 128x128 ----

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void quantize_blocks_kernel(const __grid_constant__ QuantizeFp8Args args) {
  constexpr int kSteps = static_cast<int>(kFp8Group) / Config::kBlockRows, kWarps = Config::kThreads / 32;
  __shared__ u32 warp_amax[kWarps];
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const u32 block_cols = static_cast<u32>(ceil_div(cols, kFp8Group));
  const u32 block_row = blockIdx.x / block_cols, block_col = blockIdx.x % block_cols;
  const i64 first_row = i64{block_row} * kFp8Group + threadIdx.x / 16;
  const i64 col = i64{block_col} * kFp8Group + threadIdx.x % 16 * cuda::kPiece;
  const auto x = args.x.as<const T>();

  cuda::Piece<T> pieces[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const i64 row = first_row + step * Config::kBlockRows;
    pieces[step] = cuda::load_piece(x.at(row, col), row < rows ? cols - col : 0);
  }
  u32 amax = 0;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) amax = cuda::max_finite(amax, pieces[step]);
  amax = __reduce_max_sync(0xffffffff, amax);
  if (threadIdx.x % 32 == 0) warp_amax[threadIdx.x / 32] = amax;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) amax = max(amax, warp_amax[warp]);

  const f32 scale = fp8_scale(f32_of_bits(amax), args.amax_floor, args.power_of_two);
  if (threadIdx.x == 0) *args.scales.at(block_row, block_col) = scale;
  const cuda::Divisor by(scale);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const i64 row = first_row + step * Config::kBlockRows;
    cuda::store_piece(args.values.at(row, col), pieces[step], by, row < rows ? cols - col : 0);
  }
}

// ---- 128x1 ----

struct ColumnStorage {
  cuda::TurnedBytes turned;  // first: it is read by 16 bytes
  u32 warp_amax[Config::kThreads / 32][cuda::kTurnColumns];
  cuda::Divisor divisors[cuda::kTurnColumns];
};

// The rows of a window of 128 that no expert owns, in all columns. There are few.
__device__ void clear_window(const QuantizeFp8Args& args, i64 window) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const RowRange ranges[] = {rows_before_experts(args.offsets, rows, window),
                             rows_after_experts(args.offsets, rows, window)};
  for (const RowRange& range : ranges) {
    if (range.empty()) continue;
    const i64 count = range.end - range.begin;
    for (i64 i = threadIdx.x; i < cols * count; i += Config::kThreads)
      *args.values.at(i / count, range.begin + i % count) = {0};
  }
}

template <class T>
__device__ __forceinline__ void find_column_scales(const QuantizeFp8Args& args, ColumnStorage& smem,
                                                   const cuda::Piece<T> (&pieces)[Config::kRowsPerThread],
                                                   i64 first_col, i64 group) {
  const u32 piece = threadIdx.x % 8, warp = threadIdx.x / 32;
#pragma unroll
  for (int c = 0; c < cuda::kPiece; ++c) {
    u32 amax = 0;
#pragma unroll
    for (int r = 0; r < Config::kRowsPerThread; ++r) amax = cuda::max_finite(amax, cuda::f32_of(pieces[r].values[c]));
    amax = max(amax, __shfl_xor_sync(0xffffffff, amax, 8));
    amax = max(amax, __shfl_xor_sync(0xffffffff, amax, 16));
    if (threadIdx.x % 32 < 8) smem.warp_amax[warp][piece * cuda::kPiece + c] = amax;
  }
  __syncthreads();
  if (threadIdx.x < cuda::kTurnColumns) {
    u32 amax = 0;
#pragma unroll
    for (int w = 0; w < Config::kThreads / 32; ++w) amax = max(amax, smem.warp_amax[w][threadIdx.x]);
    const f32 scale = fp8_scale(f32_of_bits(amax), args.amax_floor, args.power_of_two);
    smem.divisors[threadIdx.x] = cuda::Divisor(scale);
    const i64 col = first_col + threadIdx.x;
    if (col < args.x.shape[1]) *args.scales.at(col, group) = scale;
  }
  __syncthreads();
}

// 16 bytes a thread, 8 threads a column.
__device__ __forceinline__ void store_columns(const QuantizeFp8Args& args, ColumnStorage& smem, i64 first_col,
                                              const RowRange& range) {
  const i64 live_rows = range.end - range.begin;
#pragma unroll
  for (u32 step = 0; step < cuda::kTurnColumns / (Config::kThreads / 8); ++step) {
    const u32 column = step * (Config::kThreads / 8) + threadIdx.x / 8, word = threadIdx.x % 8 * 4;
    const i64 col = first_col + column, row = i64{word} * 4;
    if (col >= args.x.shape[1] || row >= live_rows) continue;
    const uint4 words = smem.turned.four_at(column, word);
    e4m3* values = args.values.at(col, range.begin + row);
    if (row + 16 <= live_rows && cuda::is_aligned(values, 16)) {
      *reinterpret_cast<uint4*>(values) = words;
      continue;
    }
    const u32 parts[] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (row + i < live_rows) values[i] = {static_cast<u8>(parts[i / 4] >> (i % 4 * 8))};
  }
}

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void quantize_columns_kernel(const __grid_constant__ QuantizeFp8Args args) {
  __shared__ alignas(16) ColumnStorage smem;
  const i64 cols = args.x.shape[1];
  const u32 strips = static_cast<u32>(ceil_div(cols, cuda::kTurnColumns));
  const i64 group = blockIdx.x / strips, groups = args.scales.shape[1];
  // Windows come after the groups; a block takes all their columns.
  if (group >= groups) return clear_window(args, blockIdx.x - groups * strips);
  const i64 first_col = i64{blockIdx.x % strips} * cuda::kTurnColumns;
  const RowRange range = cuda::rows_of_group_by_block<Config::kThreads>(args.offsets, args.x.shape[0], group);
  if (range.empty()) {
    const i64 col = first_col + threadIdx.x;
    if (threadIdx.x < cuda::kTurnColumns && col < cols) *args.scales.at(col, group) = 0;
    return;
  }
  const u32 piece = threadIdx.x % 8, word = threadIdx.x / 8;
  const i64 first_row = range.begin + i64{word} * Config::kRowsPerThread, col = first_col + piece * cuda::kPiece;
  const auto x = args.x.as<const T>();
  cuda::Piece<T> pieces[Config::kRowsPerThread];
#pragma unroll
  for (int r = 0; r < Config::kRowsPerThread; ++r)
    pieces[r] = cuda::load_piece(x.at(first_row + r, col), first_row + r < range.end ? cols - col : 0);
  find_column_scales(args, smem, pieces, first_col, group);
#pragma unroll
  for (int c = 0; c < cuda::kPiece; ++c) {
    const u32 column = piece * cuda::kPiece + c;
    const cuda::Divisor by = smem.divisors[column];
    const u32 low = cuda::values_of(cuda::f32_of(pieces[0].values[c]), cuda::f32_of(pieces[1].values[c]), by);
    const u32 high = cuda::values_of(cuda::f32_of(pieces[2].values[c]), cuda::f32_of(pieces[3].values[c]), by);
    smem.turned.at(column, word) = low | high << 16;
  }
  __syncthreads();
  store_columns(args, smem, first_col, range);
}

// ---- Launcher ----

i64 count_blocks(const QuantizeFp8Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  switch (args.group) {
    case Fp8Group::row: return ceil_div(rows, Config::kRowTile) * ceil_div(cols, Config::kRowGroups * kFp8Group);
    case Fp8Group::block: return ceil_div(rows, kFp8Group) * ceil_div(cols, kFp8Group);
    case Fp8Group::column: break;
  }
  const i64 windows = args.offsets.exists() && cols > 0 ? ceil_div(rows, kFp8Group) : 0;
  return args.scales.shape[1] * ceil_div(cols, cuda::kTurnColumns) + windows;
}

template <class T>
void launch(const QuantizeFp8Args& args, const cuda::LaunchShape& shape, const cuda::Device& device, void* stream) {
  switch (args.group) {
    case Fp8Group::row: return cuda::launch<quantize_rows_kernel<T>>(kOp, device, shape, stream, args);
    case Fp8Group::block: return cuda::launch<quantize_blocks_kernel<T>>(kOp, device, shape, stream, args);
    case Fp8Group::column: return cuda::launch<quantize_columns_kernel<T>>(kOp, device, shape, stream, args);
  }
}

}  // namespace

void quantize_fp8_cuda(const QuantizeFp8Args& args, void* stream) {
  check_fp8_shapes(kOp, args);
  check_amax_floor(args.amax_floor);
  const cuda::Device device = cuda::require_sm90(kOp);
  const i64 blocks = count_blocks(args);
  require(blocks < (i64{1} << 31), kOp, ": x must have fewer than 2^31 tiles, got ", blocks);
  if (blocks == 0) return;
  const cuda::LaunchShape shape{.blocks = dim3(static_cast<unsigned>(blocks)), .threads = Config::kThreads};
  switch (args.x.dtype) {
    case Float::bf16: return launch<bf16>(args, shape, device, stream);
    case Float::f16: return launch<f16>(args, shape, device, stream);
    case Float::f32: return launch<f32>(args, shape, device, stream);
  }
}

}  // namespace glm5
