// dequantize_fp8 on sm_90a: two kernels bound by memory.
//
//   1x128, 128x128   half a warp per row, 8 values of each of 4 groups a thread; a block has 16 rows x 512 columns.
//   128x1            a block per 128 rows x 64 columns; bytes are turned in shared memory.
//
// What is ragged or not aligned moves value by value.
#include <cuda_fp16.h>

#include "core/fp8_check.h"
#include "cuda/fp8_columns.cuh"
#include "cuda/launch.h"
#include "cuda/ptx/cvt.cuh"
#include "ops/dequantize_fp8/dequantize_fp8.h"

namespace glm5 {
namespace {

constexpr const char* kOp = "dequantize_fp8";

struct Config {
  static constexpr int kThreads = 256;
  static constexpr int kRowTile = kThreads / 16;
  static constexpr int kRowGroups = 4;
  static constexpr int kRowsPerThread = 4;  // 128x1: one word of a turned column
};

// ---- Values ----

__device__ __forceinline__ u32 rounded(bf16, f32 product) { return to_bf16(product).bits; }
__device__ __forceinline__ u32 rounded(f16, f32 product) {
  return product == product ? __half_as_ushort(__float2half_rn(product)) : u16{0x7e00};
}

// 8 neighbours of x as the words that hold them.
template <class T>
struct Words {
  u32 words[cuda::kPiece * sizeof(T) / 4];
  // Neighbours i and i + 1.
  __device__ __forceinline__ void set(int i, f32 first, f32 second) {
    if constexpr (sizeof(T) == 4) {
      words[i] = bits_of(first);
      words[i + 1] = bits_of(second);
    } else {
      words[i / 2] = rounded(T{}, first) | rounded(T{}, second) << 16;
    }
  }
  __device__ __forceinline__ T at(int i) const {
    if constexpr (sizeof(T) == 4) return f32_of_bits(words[i]);
    else return {static_cast<u16>(words[i / 2] >> (i % 2 * 16))};
  }
};

// The hardware's NaN is another than ours.
__device__ __forceinline__ f32 multiply(f32 value, f32 scale) {
  const f32 product = __fmul_rn(value, scale);
  return product == product ? product : f32_of_bits(0x7fc00000);
}

// Two values from the low 16 bits.
__device__ __forceinline__ float2 decode(u32 pair) {
  const u32 halves = ptx::cvt_rn_f16x2_e4m3x2(static_cast<u16>(pair));
  return {__half2float(__ushort_as_half(static_cast<u16>(halves))),
          __half2float(__ushort_as_half(static_cast<u16>(halves >> 16)))};
}

__device__ __forceinline__ uint2 load_values(const e4m3* values, i64 count) {
  if (count >= cuda::kPiece && cuda::is_aligned(values, 8)) return __ldg(reinterpret_cast<const uint2*>(values));
  u32 words[2] = {};
#pragma unroll
  for (int i = 0; i < cuda::kPiece; ++i)
    if (i < count) words[i / 4] |= u32{values[i].bits} << (i % 4 * 8);
  return {words[0], words[1]};
}

template <class T>
__device__ __forceinline__ void store_words(T* x, const Words<T>& piece, i64 count) {
  if (count >= cuda::kPiece && cuda::is_aligned(x, 16)) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(piece) / 16); ++i)
      reinterpret_cast<uint4*>(x)[i] = {piece.words[4 * i], piece.words[4 * i + 1], piece.words[4 * i + 2],
                                        piece.words[4 * i + 3]};
    return;
  }
#pragma unroll
  for (int i = 0; i < cuda::kPiece; ++i)
    if (i < count) x[i] = piece.at(i);
}

// ---- 1x128 and 128x128 ----

template <class T>
__global__ __launch_bounds__(Config::kThreads)
void dequantize_rows_kernel(const __grid_constant__ DequantizeFp8Args args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const u32 column_tiles = static_cast<u32>(ceil_div(cols, Config::kRowGroups * kFp8Group));
  const i64 row = i64{blockIdx.x / column_tiles} * Config::kRowTile + threadIdx.x / 16;
  const i64 first = i64{blockIdx.x % column_tiles} * (Config::kRowGroups * kFp8Group) + threadIdx.x % 16 * cuda::kPiece;
  if (row >= rows) return;
  const i64 scale_row = args.group == Fp8Group::row ? row : row / kFp8Group;
  uint2 values[Config::kRowGroups];
  f32 scales[Config::kRowGroups];
#pragma unroll
  for (int g = 0; g < Config::kRowGroups; ++g) {
    const i64 col = first + g * kFp8Group;
    values[g] = load_values(args.values.at(row, col), cols - col);
    scales[g] = col < cols ? *args.scales.at(scale_row, col / kFp8Group) : 0;
  }
  const auto x = args.x.as<T>();
#pragma unroll
  for (int g = 0; g < Config::kRowGroups; ++g) {
    const u32 words[] = {values[g].x, values[g].y};
    Words<T> piece;
#pragma unroll
    for (int i = 0; i < cuda::kPiece; i += 2) {
      const float2 pair = decode(words[i / 4] >> (i % 4 * 8));
      piece.set(i, multiply(pair.x, scales[g]), multiply(pair.y, scales[g]));
    }
    const i64 col = first + g * kFp8Group;
    store_words(x.at(row, col), piece, cols - col);
  }
}

// ---- 128x1 ----

struct ColumnStorage {
  cuda::TurnedBytes turned;  // first: it is written by 16 bytes
  f32 scales[cuda::kTurnColumns];
};

// The rows of a window of 128 that no expert owns, in all columns. There are few.
template <class T>
__device__ void clear_window(const DequantizeFp8Args& args, i64 window) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  const RowRange ranges[] = {rows_before_experts(args.offsets, rows, window),
                             rows_after_experts(args.offsets, rows, window)};
  const auto x = args.x.as<T>();
  for (const RowRange& range : ranges) {
    if (range.empty()) continue;
    for (i64 i = threadIdx.x; i < cols * (range.end - range.begin); i += Config::kThreads)
      *x.at(range.begin + i / cols, i % cols) = T{};
  }
}

// 16 bytes a thread, 8 threads a column.
__device__ __forceinline__ void load_columns(const DequantizeFp8Args& args, ColumnStorage& smem, i64 first_col,
                                             const RowRange& range, i64 group) {
  const i64 cols = args.x.shape[1], live_rows = range.end - range.begin;
#pragma unroll
  for (u32 step = 0; step < cuda::kTurnColumns / (Config::kThreads / 8); ++step) {
    const u32 column = step * (Config::kThreads / 8) + threadIdx.x / 8, word = threadIdx.x % 8 * 4;
    const i64 col = first_col + column, row = i64{word} * 4;
    uint4 words = {};
    if (col < cols && row < live_rows) {
      const e4m3* values = args.values.at(col, range.begin + row);
      if (row + 16 <= live_rows && cuda::is_aligned(values, 16)) {
        words = __ldg(reinterpret_cast<const uint4*>(values));
      } else {
        const uint2 low = load_values(values, live_rows - row), high = load_values(values + 8, live_rows - row - 8);
        words = {low.x, low.y, high.x, high.y};
      }
    }
    smem.turned.four_at(column, word) = words;
  }
  if (threadIdx.x < cuda::kTurnColumns) {
    const i64 col = first_col + threadIdx.x;
    smem.scales[threadIdx.x] = col < cols ? *args.scales.at(col, group) : 0;
  }
  __syncthreads();
}

template <class T>
__global__ __launch_bounds__(Config::kThreads, 4)  // 64 registers; left free, ptxas takes 40 and spills
void dequantize_columns_kernel(const __grid_constant__ DequantizeFp8Args args) {
  __shared__ alignas(16) ColumnStorage smem;
  const i64 cols = args.x.shape[1], groups = args.scales.shape[1];
  const u32 strips = static_cast<u32>(ceil_div(cols, cuda::kTurnColumns));
  const i64 group = blockIdx.x / strips;
  // Windows come after the groups; a block takes all their columns.
  if (group >= groups) return clear_window<T>(args, blockIdx.x - groups * strips);
  const i64 first_col = i64{blockIdx.x % strips} * cuda::kTurnColumns;
  const RowRange range = cuda::rows_of_group_by_block<Config::kThreads>(args.offsets, args.x.shape[0], group);
  if (range.empty()) return;
  load_columns(args, smem, first_col, range, group);

  const u32 piece = threadIdx.x % 8, word = threadIdx.x / 8;
  Words<T> pieces[Config::kRowsPerThread];
#pragma unroll
  for (int c = 0; c < cuda::kPiece; c += 2) {
    const u32 column = piece * cuda::kPiece + c;
    const u32 codes0 = smem.turned.at(column, word), codes1 = smem.turned.at(column + 1, word);
    const f32 scale0 = smem.scales[column], scale1 = smem.scales[column + 1];
#pragma unroll
    for (int r = 0; r < Config::kRowsPerThread; r += 2) {
      const float2 pair0 = decode(codes0 >> (r * 8)), pair1 = decode(codes1 >> (r * 8));
      pieces[r].set(c, multiply(pair0.x, scale0), multiply(pair1.x, scale1));
      pieces[r + 1].set(c, multiply(pair0.y, scale0), multiply(pair1.y, scale1));
    }
  }
  const auto x = args.x.as<T>();
  const i64 row = range.begin + i64{word} * Config::kRowsPerThread, col = first_col + piece * cuda::kPiece;
#pragma unroll
  for (int r = 0; r < Config::kRowsPerThread; ++r)
    store_words(x.at(row + r, col), pieces[r], row + r < range.end ? cols - col : 0);
}

// ---- Launcher ----

i64 count_blocks(const DequantizeFp8Args& args) {
  const i64 rows = args.x.shape[0], cols = args.x.shape[1];
  if (args.group != Fp8Group::column)
    return ceil_div(rows, Config::kRowTile) * ceil_div(cols, Config::kRowGroups * kFp8Group);
  const i64 windows = args.offsets.exists() && cols > 0 ? ceil_div(rows, kFp8Group) : 0;
  return args.scales.shape[1] * ceil_div(cols, cuda::kTurnColumns) + windows;
}

template <class T>
void launch(const DequantizeFp8Args& args, const cuda::LaunchShape& shape, const cuda::Device& device, void* stream) {
  if (args.group == Fp8Group::column)
    return cuda::launch<dequantize_columns_kernel<T>>(kOp, device, shape, stream, args);
  cuda::launch<dequantize_rows_kernel<T>>(kOp, device, shape, stream, args);
}

}  // namespace

void dequantize_fp8_cuda(const DequantizeFp8Args& args, void* stream) {
  check_fp8_shapes(kOp, args);
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
