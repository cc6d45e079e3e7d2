// dequantize_fp8 on vectors (cpu/vector.h), 128 values with one scale at a time; columns come as rows of a copy that is
// transposed on its way out.
//
// To bf16, by table. Products of a scale that is neither huge nor tiny move with the exponent of the value: all follow
// from those of the codes 0 .. 15, subnormal numbers and the first binade, by adding binades to the exponent. So a
// group takes 16 products, two byte shuffles find a value's upper and lower half among them, and 32 (64) values cost 21
// instructions with AVX2 (AVX-512), where converting, multiplying and rounding them takes more than three times that.
//
// By multiplication: everything else, number by number in f32.
//
// The namespace is unnamed: every object has its own functions, for its own instructions.
#pragma once

#include "cpu/vector.h"
#include "ops/dequantize_fp8/areas.h"

namespace glm5::dequantize {
namespace {

constexpr i64 kRowAhead = 4096;  // how far ahead of the values in work memory is read
constexpr i64 kColumns = 32;     // that are transposed together: 64 bytes of a row in bf16

// The codes 0 .. 15 as numbers, and what their binade adds to the bf16 of a product: 0, or one exponent from 8 on.
alignas(64) constexpr f32 kNumbers[16] = {0x0p-9f, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f,
                                          0x8p-9f, 0x9p-9f, 0xap-9f, 0xbp-9f, 0xcp-9f, 0xdp-9f, 0xep-9f, 0xfp-9f};
alignas(32) constexpr u16 kBinades[16] = {0, 0, 0, 0, 0, 0, 0, 0, 128, 128, 128, 128, 128, 128, 128, 128};

GLM5_INLINE void prefetch_128(const e4m3* values) {
  __builtin_prefetch(values);
  __builtin_prefetch(values + 64);
}

template <class Vector>
GLM5_INLINE void store(void* x, typename Vector::u8s bytes, bool past_caches) {
  if (past_caches)
    Vector::stream(x, bytes);
  else
    Vector::store(x, bytes);
}

template <class Vector>
GLM5_INLINE void dequantize_by_table(const e4m3* values, f32 scale, bf16* x, bool past_caches, i64 ahead) {
  using u8s = typename Vector::u8s;
  using u16s = typename Vector::u16s;
  prefetch_128(values + ahead);
  alignas(32) u8 bytes[2][16];
  Vector::split_bf16(kNumbers, scale, kBinades, bytes[0]);
  const u8s low_bytes = Vector::repeat_16(bytes[0]), high_bytes = Vector::repeat_16(bytes[1]);
#pragma GCC unroll 4
  for (i64 i = 0; i < kFp8Group; i += Vector::kBytes) {
    const u8s codes = Vector::halves_to_lanes(Vector::load(values + i)), magnitudes = codes & 0x7f;
    const u8s index = cpu::smaller_of(magnitudes, u8s{} + 8) | (magnitudes & 7);
    const u8s is_nan = (u8s)(magnitudes == kE4m3Nan);  // becomes 0x7840 + 0x780 = 0x7fc0
    const u8s low = Vector::select(is_nan, u8s{} + 0x40, Vector::choose(low_bytes, index));
    const u8s high = Vector::select(is_nan, u8s{} + 0x78, Vector::choose(high_bytes, index) | (codes & 0x80));
    const u8s binades = magnitudes & 0x78;
    const u16s left_binades = (u16s)Vector::template interleave_low<1>(u8s{}, binades) >> 4;
    const u16s right_binades = (u16s)Vector::template interleave_high<1>(u8s{}, binades) >> 4;
    const u16s left = (u16s)Vector::template interleave_low<1>(low, high) + left_binades;
    const u16s right = (u16s)Vector::template interleave_high<1>(low, high) + right_binades;
    store<Vector>(x + i, (u8s)left, past_caches);
    store<Vector>(x + i + Vector::kBytes / 2, (u8s)right, past_caches);
  }
}

template <class Vector, class T>
[[gnu::noinline]] void dequantize_by_multiplication(const e4m3* values, f32 scale, T* x, i64 ahead) {
  using u32s = typename Vector::u32s;
  using f32s = typename Vector::f32s;
  prefetch_128(values + ahead);
  for (i64 i = 0; i < kFp8Group; i += Vector::kFloats) {
    const f32s number = Vector::load_f32(values + i);  // over 256; NaN as 1.875
    const f32s product = number * 256 * scale;
    const u32s is_nan = (u32s)(product != product) | (u32s)(((u32s)number & 0x7fffffff) == bits_of(1.875f));
    // Machines differ in the NaN that an operation makes; ours is one.
    Vector::store_f32(x + i, (f32s)((is_nan & 0x7fc00000) | (~is_nan & (u32s)product)));
  }
}

// At most 32 groups of 128 values: values and scales at steps, x without gaps. What is `ahead` of the values will be
// read soon.
template <class T>
struct Line {
  const e4m3* values;
  i64 values_step;
  const f32* scales;
  i64 scales_step;
  T* x;
  i64 ahead;
  bool past_caches;
};

template <class Vector, class T>
GLM5_INLINE void dequantize_line(const Line<T>& line, i64 groups) {
  u32 left = static_cast<u32>((u64{1} << groups) - 1);
  if constexpr (__is_same(T, bf16)) {
    for (i64 g = 0; g < groups; ++g) {
      const e4m3* values = line.values + g * line.values_step;
      const f32 scale = line.scales[g * line.scales_step];
      // 2^-100 <= scale <= 2^100: no product overflows, none is subnormal.
      if (bits_of(scale) - bits_of(0x1p-100f) > bits_of(0x1p100f) - bits_of(0x1p-100f)) continue;
      dequantize_by_table<Vector>(values, scale, line.x + g * kFp8Group, line.past_caches, line.ahead);
      left ^= u32{1} << g;
    }
  }
  for (i64 g = 0; g < groups; ++g) {
    if (left >> g & 1)
      dequantize_by_multiplication<Vector>(line.values + g * line.values_step, line.scales[g * line.scales_step],
                                           line.x + g * kFp8Group, line.ahead);
  }
}

template <class T>
GLM5_INLINE void copy(const T* from, i64 count, T* to) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

// x that no second-level cache holds is written past it, in whole cache lines.
template <class T>
GLM5_INLINE bool goes_past_caches(const Tensor<T, 2>& x, const T* to) {
  constexpr i64 kStreamedBytes = 4 << 20, kSize = sizeof(T);
  return x.shape[0] * x.shape[1] * kSize >= kStreamedBytes && reinterpret_cast<std::uintptr_t>(to) % 64 == 0;
}

// Groups 1x128 and 128x128: one scale for every 128 columns of a row.
template <class Vector, class T>
void dequantize_rows(const DequantizeFp8Args& args, const cpu::Fp8Area& area) {
  const auto x = args.x.as<T>();
  const i64 cols = area.col_end - area.col_begin, whole = cols / kFp8Group, first = area.col_begin / kFp8Group;
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    const e4m3* values = args.values.at(row, area.col_begin);
    const f32* scales = args.scales.at(args.group == Fp8Group::row ? row : row / kFp8Group, first);
    T* to = x.at(row, area.col_begin);
    const i64 step = args.scales.stride[1];
    dequantize_line<Vector>(Line<T>{values, kFp8Group, scales, step, to, kRowAhead, goes_past_caches(x, to)}, whole);
    if (cols % kFp8Group == 0) continue;
    alignas(64) e4m3 padded[kFp8Group] = {};
    alignas(64) T all[kFp8Group];
    copy(values + whole * kFp8Group, cols % kFp8Group, padded);
    dequantize_line<Vector>(Line<T>{padded, 0, scales + whole * step, 0, all, 0, false}, 1);
    copy(all, cols % kFp8Group, to + whole * kFp8Group);
  }
}

// x[r * stride + c] = columns[c][r]. Not past the caches: these pieces of rows are too short for that (measured).
template <class Vector, class T>
GLM5_INLINE void transpose(const T (*columns)[kFp8Group], T* x, i64 stride) {
  constexpr i64 kSide = 16 / sizeof(T), kWidth = Vector::kBytes / sizeof(T), kVectors = kColumns / kWidth;
  for (i64 row = 0; row < kFp8Group; row += kSide) {
    typename Vector::u8s lines[kVectors][kSide];
#pragma GCC unroll 8
    for (i64 v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (i64 j = 0; j < kSide; ++j)
        lines[v][j] = Vector::load_lanes(&columns[v * kWidth + j][row], kSide * sizeof(columns[0]));
      cpu::transpose_lanes<Vector, T>(lines[v]);
    }
#pragma GCC unroll 8
    for (i64 j = 0; j < kSide; ++j) {
#pragma GCC unroll 8
      for (i64 v = 0; v < kVectors; ++v) Vector::store(x + (row + j) * stride + v * kWidth, lines[v][j]);
    }
  }
}

template <class Vector, class T>
void dequantize_columns(const DequantizeFp8Args& args, const cpu::Fp8Area& area) {
  const auto x = args.x.as<T>();
  const i64 rows = area.row_end - area.row_begin, stride = args.values.stride[0];
  alignas(64) T columns[kColumns][kFp8Group];
  for (i64 col = area.col_begin; col < area.col_end; col += kColumns) {
    const i64 cols = smaller(kColumns, area.col_end - col);
    const e4m3* values = args.values.at(col, area.row_begin);
    T* to = x.at(area.row_begin, col);
    Line<T> line{values, stride, args.scales.at(col, area.group), args.scales.stride[0], columns[0], kFp8Group * stride,
                 false};
    alignas(64) e4m3 padded[kColumns][kFp8Group];
    if (rows < kFp8Group) {
      __builtin_memset(padded, 0, sizeof(padded));
      for (i64 c = 0; c < cols; ++c) copy(values + c * stride, rows, padded[c]);
      line.values = padded[0];
      line.values_step = kFp8Group;
    }
    dequantize_line<Vector>(line, cols);
    if (rows == kFp8Group && cols == kColumns) {
      transpose<Vector>(columns, to, x.stride[0]);
    } else {
      for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < cols; ++c) to[r * x.stride[0] + c] = columns[c][r];
    }
  }
}

template <class Vector>
struct Kernel {
  template <class T>
  static void run(const DequantizeFp8Args& args, const cpu::Fp8Area& area) {
    if (area.group < 0) {
      for (i64 row = area.row_begin; row < area.row_end; ++row)
        __builtin_memset(args.x.as<T>().at(row, area.col_begin), 0, (area.col_end - area.col_begin) * sizeof(T));
    } else if (args.group == Fp8Group::column) {
      dequantize_columns<Vector, T>(args, area);
    } else {
      dequantize_rows<Vector, T>(args, area);
    }
    Vector::fence();  // streamed values are seen before whatever the thread signals next
  }
};

}  // namespace
}  // namespace glm5::dequantize
