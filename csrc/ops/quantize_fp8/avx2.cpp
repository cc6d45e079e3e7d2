// quantize_fp8 on AVX2: 32 values at a time, from three types of x.
//
// The quotient. y = x * r, r = 1 / scale, and then y + (x - y * scale) * r with two fused multiply-adds is the rounded
// quotient itself (Markstein) where r is rounded to nearest and y lies within a step of the quotient. y does wherever
// it matters: near a boundary m between two e4m3, whose significand is at most 31/16, x * r is less than 31/32 of a
// step off. Below scales of 2^-90 the remainder could be subnormal and inexact; such groups, and those with infinities
// and NaN, are rare and take the plain formula.
//
// The rounding to e4m3 is one float addition: |q| + 2^(e + 20), where e is the exponent of |q| or -6 if that is
// greater, has its last bit at 2^(e - 3), which is the step of e4m3 there, subnormal numbers included. So the sum's
// low bits hold the count of steps, rounded to nearest even, and the code is that count + 8 (e + 6).
//
// Ragged groups go through a copy padded with zeros, which change neither the largest magnitude nor another value.
#include <immintrin.h>

#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/quantize_fp8/areas.h"

namespace glm5::avx2 {
namespace {

using quantize::Area;

constexpr i64 kLanes = 32;

// How far ahead of the values in work memory is read. Finding the maxima waits for memory and the rest for arithmetic,
// so the latter prefetches for the former: 25 % faster with x in memory (measured on Zen 3). Non-temporal stores were
// not faster, but for 128x1, whose pieces of 128 bytes lie far apart: 30 % there.
constexpr i64 kRowAhead = 2048;
constexpr i64 kBlockAhead = 2 * kFp8Group;
constexpr i64 kColumnAhead = quantize::kColumnCols;
constexpr i64 kStreamedBytes = 4 << 20;  // an output that no second-level cache holds

GLM5_INLINE __m256i load_256(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
GLM5_INLINE __m128i load_128(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }

GLM5_INLINE __m256 load_f32(const f32* x) { return _mm256_loadu_ps(x); }
GLM5_INLINE __m256 load_f32(const f16* x) { return _mm256_cvtph_ps(load_128(x)); }
GLM5_INLINE __m256 load_f32(const bf16* x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(x)), 16));
}

// Magnitudes are compared as the integers that they are in their own type.
template <class T>
struct Magnitude {  // bf16, f16
  using Bits = u16;
  static constexpr Bits kMask = 0x7fff;
  static constexpr i64 kCount = 16;
  GLM5_INLINE static __m256i load(const T* x) { return _mm256_and_si256(load_256(x), _mm256_set1_epi16(kMask)); }
  GLM5_INLINE static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi16(a, b); }
};
template <>
struct Magnitude<f32> {
  using Bits = u32;
  static constexpr Bits kMask = 0x7fffffff;
  static constexpr i64 kCount = 8;
  GLM5_INLINE static __m256i load(const f32* x) { return _mm256_and_si256(load_256(x), _mm256_set1_epi32(kMask)); }
  GLM5_INLINE static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
};

GLM5_INLINE u32 largest(const bf16*, __m256i magnitudes) {
  // phminposuw finds the smallest of eight, so the complement's.
  const __m128i larger_half =
      _mm_max_epi16(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
  const __m128i complement = _mm_xor_si128(larger_half, _mm_set1_epi16(-1));
  return 0xffffu ^ (static_cast<u32>(_mm_cvtsi128_si32(_mm_minpos_epu16(complement))) & 0xffffu);
}
GLM5_INLINE u32 largest(const f16*, __m256i magnitudes) {
  return largest(static_cast<const bf16*>(nullptr), magnitudes);
}
GLM5_INLINE u32 largest(const f32*, __m256i magnitudes) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return static_cast<u32>(_mm_cvtsi128_si32(four));
}

// A magnitude of T as f32; what is not finite in T is not finite here.
GLM5_INLINE f32 magnitude_f32(const bf16*, u32 bits) { return f32_of_bits(bits << 16); }
GLM5_INLINE f32 magnitude_f32(const f16*, u32 bits) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits))); }
GLM5_INLINE f32 magnitude_f32(const f32*, u32 bits) { return f32_of_bits(bits); }

// A scale and its reciprocal, eight of them.
struct Divisor {
  __m256 scale, reciprocal;
  GLM5_INLINE explicit Divisor(__m256 scales) : scale(scales), reciprocal(_mm256_div_ps(_mm256_set1_ps(1), scales)) {}
  GLM5_INLINE Divisor(const f32* scales, const f32* reciprocals)
      : scale(_mm256_load_ps(scales)), reciprocal(_mm256_load_ps(reciprocals)) {}
};

// fp8_scale(), for eight groups.
GLM5_INLINE __m256 scales_of(__m256 amax, const QuantizeFp8Args& args) {
  const __m256 scale = _mm256_div_ps(_mm256_max_ps(amax, _mm256_set1_ps(args.amax_floor)), _mm256_set1_ps(kE4m3Max));
  if (!args.power_of_two) return scale;
  const __m256i above = _mm256_add_epi32(_mm256_castps_si256(scale), _mm256_set1_epi32(0x7fffff));
  return _mm256_castsi256_ps(_mm256_and_si256(above, _mm256_set1_epi32(static_cast<i32>(0xff800000))));
}

// magnitude / scale as a code in the low 16 bits of each lane; what stands above is of no meaning.
GLM5_INLINE __m256i code_words(__m256 magnitude, const Divisor& by) {
  const __m256 estimate = _mm256_mul_ps(magnitude, by.reciprocal);
  const __m256 remainder = _mm256_fnmadd_ps(estimate, by.scale, magnitude);
  const __m256 quotient = _mm256_fmadd_ps(remainder, by.reciprocal, estimate);
  const __m256i exponent =
      _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(quotient), _mm256_set1_epi32(0x7f800000)),
                       _mm256_set1_epi32(121 << 23));
  // adder >> 20 is 8 (e + 147) = 8 (e + 6) + 1128; the low bits of the adder complete that to 65536, and being even do
  // not touch the rounding.
  const __m256i adder = _mm256_add_epi32(exponent, _mm256_set1_epi32((20 << 23) + 65536 - 1128));
  const __m256 sum = _mm256_add_ps(quotient, _mm256_castsi256_ps(adder));
  return _mm256_add_epi32(_mm256_castps_si256(sum), _mm256_srli_epi32(adder, 20));
}

// Codes of magnitudes, two vectors of 16 words, and sign bits, to 32 values. Packing keeps signs and leaves the halves'
// quarters interleaved.
GLM5_INLINE __m256i join(__m256i codes_low, __m256i codes_high, __m256i signs_low, __m256i signs_high) {
  const __m256i signs = _mm256_and_si256(_mm256_packs_epi16(signs_low, signs_high), _mm256_set1_epi8(-128));
  return _mm256_or_si256(_mm256_packus_epi16(codes_low, codes_high), signs);
}

// The place, among 32 lanes of four vectors, in which quantize_32 wants the divisor of a value.
GLM5_INLINE i64 lane_of(const bf16*, i64 i) { return i / 16 * 16 + i % 2 * 8 + i % 16 / 2; }
GLM5_INLINE i64 lane_of(const void*, i64 i) { return i; }

GLM5_INLINE __m256i quantize_32(const bf16* x, const Divisor& d0, const Divisor& d1, const Divisor& d2,
                                const Divisor& d3) {
  // Even values shifted up and odd ones masked are f32 in place, and their codes shifted back are words in order.
  const __m256i high = _mm256_set1_epi32(0x7fff0000);
  const __m256i x0 = load_256(x), x1 = load_256(x + 16);
  const __m256i even0 = _mm256_srli_epi32(_mm256_slli_epi32(x0, 17), 1), odd0 = _mm256_and_si256(x0, high);
  const __m256i even1 = _mm256_srli_epi32(_mm256_slli_epi32(x1, 17), 1), odd1 = _mm256_and_si256(x1, high);
  const __m256i c0 = code_words(_mm256_castsi256_ps(even0), d0), c1 = code_words(_mm256_castsi256_ps(odd0), d1);
  const __m256i c2 = code_words(_mm256_castsi256_ps(even1), d2), c3 = code_words(_mm256_castsi256_ps(odd1), d3);
  const __m256i low_words = _mm256_blend_epi16(c0, _mm256_slli_epi32(c1, 16), 0xaa);
  const __m256i high_words = _mm256_blend_epi16(c2, _mm256_slli_epi32(c3, 16), 0xaa);
  return _mm256_permute4x64_epi64(join(low_words, high_words, x0, x1), 0xd8);
}

template <class T>
GLM5_INLINE __m256i quantize_32(const T* x, const Divisor& d0, const Divisor& d1, const Divisor& d2,
                                const Divisor& d3) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  const __m256 x0 = load_f32(x), x1 = load_f32(x + 8), x2 = load_f32(x + 16), x3 = load_f32(x + 24);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i c0 = _mm256_blend_epi16(code_words(_mm256_and_ps(x0, magnitude), d0), zero, 0xaa);
  const __m256i c1 = _mm256_blend_epi16(code_words(_mm256_and_ps(x1, magnitude), d1), zero, 0xaa);
  const __m256i c2 = _mm256_blend_epi16(code_words(_mm256_and_ps(x2, magnitude), d2), zero, 0xaa);
  const __m256i c3 = _mm256_blend_epi16(code_words(_mm256_and_ps(x3, magnitude), d3), zero, 0xaa);
  const __m256i values = join(_mm256_packus_epi32(c0, c1), _mm256_packus_epi32(c2, c3),
                              _mm256_packs_epi32(_mm256_castps_si256(x0), _mm256_castps_si256(x1)),
                              _mm256_packs_epi32(_mm256_castps_si256(x2), _mm256_castps_si256(x3)));
  return _mm256_permutevar8x32_epi32(values, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

GLM5_INLINE void store_values(e4m3* values, __m256i bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), bytes);
}

GLM5_INLINE f32 scalar_f32(const f32* x) { return *x; }
GLM5_INLINE f32 scalar_f32(const bf16* x) { return to_f32(*x); }
GLM5_INLINE f32 scalar_f32(const f16* x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x->bits))); }

// Rare: the largest finite magnitude of a few values, going on from amax.
template <class T>
[[gnu::noinline]] f32 finite_amax(const T* x, i64 count, f32 amax) {
  for (i64 i = 0; i < count; ++i) {
    const f32 magnitude = f32_of_bits(bits_of(scalar_f32(x + i)) & 0x7fffffff);
    if (is_finite(magnitude) && magnitude > amax) amax = magnitude;
  }
  return amax;
}

// Rare: values by the plain formula. `step` is the distance of neighbours in values.
template <class T>
[[gnu::noinline]] void quantize_plainly(const T* x, i64 count, f32 scale, e4m3* values, i64 step) {
  for (i64 i = 0; i < count; ++i) values[i * step] = to_e4m3(scalar_f32(x + i) / scale);
}

constexpr f32 kSmallestScale = 0x1p-90f;  // from here on the quotient's remainder is exact

template <class T>
GLM5_INLINE __m256i max_of_128(const T* x, __m256i amax) {
  using M = Magnitude<T>;
  for (i64 i = 0; i < kFp8Group; i += M::kCount) amax = M::max(amax, M::load(x + i));
  return amax;
}

template <class T>
GLM5_INLINE void prefetch_32(const T* x) {
  for (u64 byte = 0; byte < kLanes * sizeof(T); byte += 64) __builtin_prefetch(reinterpret_cast<const char*>(x) + byte);
}

template <class T>
GLM5_INLINE void quantize_128(const T* x, const Divisor& by, e4m3* values, i64 ahead) {
  for (i64 i = 0; i < kFp8Group; i += kLanes) {
    prefetch_32(x + i + ahead);
    store_values(values + i, quantize_32(x + i, by, by, by, by));
  }
}

template <class T>
GLM5_INLINE void copy(const T* from, i64 count, T* to) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

// Rows of at most 128 values, read as rows of 128: in place, or copied and padded.
template <class T>
struct PaddedRow {
  alignas(32) T values[kFp8Group];
  GLM5_INLINE PaddedRow() { __builtin_memset(values, 0, sizeof(values)); }
  GLM5_INLINE const T* fill(const T* x, i64 count) {
    if (count == kFp8Group) return x;
    copy(x, count, values);
    return values;
  }
};

// One row of a group whose scale is known.
template <class T>
GLM5_INLINE void quantize_row(const T* x, i64 cols, const Divisor& by, e4m3* values, i64 ahead) {
  if (cols == kFp8Group) return quantize_128(x, by, values, ahead);
  PaddedRow<T> padded;
  alignas(32) e4m3 all[kFp8Group];
  quantize_128(padded.fill(x, cols), by, all, 0);
  copy(all, cols, values);
}

// Groups of 1 x 128, eight at a time: their scales are divided together, so that no group waits for its own.
template <class T>
GLM5_INLINE void quantize_eight(const QuantizeFp8Args& args, const T* x, i64 cols, e4m3* values, f32* scales) {
  const i64 groups = ceil_div(cols, kFp8Group);
  PaddedRow<T> padded;
  alignas(32) f32 amax[8] = {};
  bool all_finite = true;
  for (i64 g = 0; g < groups; ++g) {
    const T* row = x + g * kFp8Group;
    const i64 count = smaller(kFp8Group, cols - g * kFp8Group);
    amax[g] = magnitude_f32(x, largest(x, max_of_128(padded.fill(row, count), _mm256_setzero_si256())));
    all_finite &= is_finite(amax[g]);
  }
  for (i64 g = 0; g < groups && !all_finite; ++g) {
    if (!is_finite(amax[g])) amax[g] = finite_amax(x + g * kFp8Group, smaller(kFp8Group, cols - g * kFp8Group), 0);
  }
  const Divisor divisors(scales_of(_mm256_load_ps(amax), args));
  alignas(32) f32 reciprocals[8];
  _mm256_store_ps(scales, divisors.scale);
  _mm256_store_ps(reciprocals, divisors.reciprocal);
  for (i64 g = 0; g < groups; ++g) {
    const i64 count = smaller(kFp8Group, cols - g * kFp8Group);
    Divisor by = divisors;
    by.scale = _mm256_broadcast_ss(scales + g);
    by.reciprocal = _mm256_broadcast_ss(reciprocals + g);
    const T* row = x + g * kFp8Group;
    if (all_finite && scales[g] >= kSmallestScale) quantize_row(row, count, by, values + g * kFp8Group, kRowAhead);
    else quantize_plainly(row, count, scales[g], values + g * kFp8Group, 1);
  }
}

template <class T>
void quantize_rows(const QuantizeFp8Args& args, const Area& area) {
  // Scales are column-major: gather those of the 16 rows, so that each cache line is written at once.
  constexpr i64 kGroups = quantize::kRowCols / kFp8Group, kStep = 8 * kFp8Group;
  alignas(64) f32 scales[quantize::kRowTile][kGroups];
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, first = area.col_begin / kFp8Group;
  for (i64 row = 0; row < rows; ++row) {
    for (i64 col = area.col_begin; col < area.col_end; col += kStep)
      quantize_eight(args, x.at(area.row_begin + row, col), smaller(kStep, area.col_end - col),
                     args.values.at(area.row_begin + row, col), &scales[row][col / kFp8Group - first]);
  }
  for (i64 group = first; group < ceil_div(area.col_end, kFp8Group); ++group)
    for (i64 row = 0; row < rows; ++row) *args.scales.at(area.row_begin + row, group) = scales[row][group - first];
}

// A block of at most 128 x 128; gives its scale.
template <class T>
GLM5_INLINE f32 quantize_block(const QuantizeFp8Args& args, const T* x, i64 rows, i64 cols, e4m3* values) {
  const i64 x_stride = args.x.stride[0], value_stride = args.values.stride[0];
  PaddedRow<T> padded;
  __m256i magnitudes = _mm256_setzero_si256();
  for (i64 r = 0; r < rows; ++r) magnitudes = max_of_128(padded.fill(x + r * x_stride, cols), magnitudes);
  f32 amax = magnitude_f32(x, largest(x, magnitudes));
  const bool all_finite = is_finite(amax);
  if (!all_finite) {
    amax = 0;
    for (i64 r = 0; r < rows; ++r) amax = finite_amax(x + r * x_stride, cols, amax);
  }
  const f32 scale = fp8_scale(amax, args.amax_floor, args.power_of_two);
  const Divisor by(_mm256_set1_ps(scale));
  for (i64 r = 0; r < rows; ++r) {
    const T* row = x + r * x_stride;
    e4m3* row_values = values + r * value_stride;
    if (all_finite && scale >= kSmallestScale) quantize_row(row, cols, by, row_values, kBlockAhead);
    else quantize_plainly(row, cols, scale, row_values, 1);
  }
  return scale;
}

template <class T>
void quantize_blocks(const QuantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin;
  for (i64 col = area.col_begin; col < area.col_end; col += kFp8Group) {
    *args.scales.at(area.row_begin / kFp8Group, col / kFp8Group) =
        quantize_block(args, x.at(area.row_begin, col), rows, smaller(kFp8Group, area.col_end - col),
                       args.values.at(area.row_begin, col));
  }
}

// The largest magnitudes of `cols` columns over the group's rows, as bits of T, where x is read row after row.
template <class T>
GLM5_INLINE void column_maxima(const Tensor<const T, 2>& x, const Area& area, typename Magnitude<T>::Bits* maxima) {
  using M = Magnitude<T>;
  const i64 cols = area.col_end - area.col_begin, whole = cols / M::kCount * M::kCount;
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    const T* line = x.at(row, area.col_begin);
    for (i64 c = 0; c < whole; c += M::kCount) {
      __m256i* maximum = reinterpret_cast<__m256i*>(maxima + c);
      _mm256_store_si256(maximum, M::max(_mm256_load_si256(maximum), M::load(line + c)));
    }
    for (i64 c = whole; c < cols; ++c) {
      typename M::Bits bits;
      __builtin_memcpy(&bits, line + c, sizeof(bits));
      bits &= M::kMask;
      if (bits > maxima[c]) maxima[c] = bits;
    }
  }
}

// tile[r][c] of 16 rows to columns[c][r]: 32 columns, whose next 16 bytes these are.
GLM5_INLINE void transpose_16_rows(const e4m3 (*tile)[kLanes], e4m3 (*columns)[kFp8Group], i64 row) {
  __m256i a[16];
  for (int r = 0; r < 16; ++r) a[r] = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile[r]));
  transpose_16x16_bytes(a);
  for (int c = 0; c < 16; ++c) {
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c][row]), _mm256_castsi256_si128(a[c]));
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c + 16][row]), _mm256_extracti128_si256(a[c], 1));
  }
}

// What the columns of an area divide by, in the order of lane_of().
struct ColumnDivisors {
  alignas(32) f32 scales[quantize::kColumnCols];
  alignas(32) f32 reciprocals[quantize::kColumnCols];
  GLM5_INLINE Divisor at(i64 lane) const { return {scales + lane, reciprocals + lane}; }
};

GLM5_INLINE void stream_128(const e4m3* from, e4m3* to) {
  for (i64 i = 0; i < kFp8Group; i += 32) _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), load_256(from + i));
}

// 32 columns of one group: quantised row by row, then turned.
template <class T>
GLM5_INLINE void quantize_32_columns(const QuantizeFp8Args& args, const Area& area, i64 col, const ColumnDivisors& by) {
  const bool past_caches = args.values.shape[0] * args.values.shape[1] >= kStreamedBytes;
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, cols = smaller(kLanes, area.col_end - col);
  const i64 lane = col - area.col_begin;
  alignas(32) e4m3 tile[kFp8Group][kLanes];
  alignas(32) e4m3 columns[kLanes][kFp8Group];
  alignas(32) T padded[kLanes] = {};
  const Divisor d0 = by.at(lane), d1 = by.at(lane + 8), d2 = by.at(lane + 16), d3 = by.at(lane + 24);
  for (i64 r = 0; r < rows; ++r) {
    const T* line = x.at(area.row_begin + r, col);
    if (cols < kLanes) copy(line, cols, padded);
    prefetch_32(line + kColumnAhead);
    store_values(tile[r], quantize_32(cols < kLanes ? padded : line, d0, d1, d2, d3));
  }
  if (rows % 16 != 0) __builtin_memset(tile[rows], 0, (16 - rows % 16) * kLanes);  // turned, but not copied
  for (i64 r = 0; r < rows; r += 16) transpose_16_rows(tile + r, columns, r);
  for (i64 c = 0; c < cols; ++c) {
    e4m3* values = args.values.at(col + c, area.row_begin);
    if (rows < kFp8Group) copy(columns[c], rows, values);
    else if (past_caches && reinterpret_cast<std::uintptr_t>(values) % 32 == 0) stream_128(columns[c], values);
    else copy(columns[c], kFp8Group, values);
  }
}

// Rare: columns with infinities, NaN or tiny scales, by the plain formula.
template <class T>
[[gnu::noinline]] void mend_columns(const QuantizeFp8Args& args, const Area& area,
                                    const typename Magnitude<T>::Bits* maxima) {
  const auto x = args.x.as<const T>();
  for (i64 col = area.col_begin; col < area.col_end; ++col) {
    f32 amax = magnitude_f32(x.data, maxima[col - area.col_begin]);
    if (!is_finite(amax)) {
      amax = 0;
      for (i64 row = area.row_begin; row < area.row_end; ++row) amax = finite_amax(x.at(row, col), 1, amax);
    }
    const f32 scale = fp8_scale(amax, args.amax_floor, args.power_of_two);
    *args.scales.at(col, area.group) = scale;
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      quantize_plainly(x.at(row, col), 1, scale, args.values.at(col, row), 1);
  }
}

template <class T>
void quantize_columns(const QuantizeFp8Args& args, const Area& area) {
  if (area.group < 0) return quantize::clear_values(args, area);
  const auto x = args.x.as<const T>();
  const i64 cols = area.col_end - area.col_begin;
  if (area.row_begin >= area.row_end) {
    for (i64 col = area.col_begin; col < area.col_end; ++col) *args.scales.at(col, area.group) = 0;
    return;
  }
  alignas(32) typename Magnitude<T>::Bits maxima[quantize::kColumnCols];
  __builtin_memset(maxima, 0, sizeof(maxima));
  column_maxima(x, area, maxima);
  ColumnDivisors by;
  bool all_plain = true;
  for (i64 c = 0; c < round_up(cols, kLanes); c += 8) {
    alignas(32) f32 amax[8], scales[8], reciprocals[8];
    for (i64 i = 0; i < 8; ++i) {
      amax[i] = magnitude_f32(x.data, maxima[c + i]);
      all_plain &= is_finite(amax[i]);
    }
    const Divisor divisors(scales_of(_mm256_load_ps(amax), args));
    _mm256_store_ps(scales, divisors.scale);
    _mm256_store_ps(reciprocals, divisors.reciprocal);
    for (i64 i = 0; i < 8; ++i) {
      all_plain &= scales[i] >= kSmallestScale;
      const i64 lane = (c + i) / kLanes * kLanes + lane_of(x.data, (c + i) % kLanes);
      by.scales[lane] = scales[i];
      by.reciprocals[lane] = reciprocals[i];
      if (c + i < cols) *args.scales.at(area.col_begin + c + i, area.group) = scales[i];
    }
  }
  if (!all_plain) return mend_columns<T>(args, area, maxima);
  for (i64 c = 0; c < cols; c += kLanes) quantize_32_columns<T>(args, area, area.col_begin + c, by);
  _mm_sfence();  // streamed values are seen before whatever the thread signals next
}

template <class T>
GLM5_INLINE void quantize_area(const QuantizeFp8Args& args, const Area& area) {
  switch (args.group) {
    case Fp8Group::row: return quantize_rows<T>(args, area);
    case Fp8Group::block: return quantize_blocks<T>(args, area);
    case Fp8Group::column: return quantize_columns<T>(args, area);
  }
}

}  // namespace

void quantize_fp8(const QuantizeFp8Args& args, i64 begin, i64 end, i64) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 item = begin; item < end; ++item) {
    const Area area = quantize::area_of(args, item);
    switch (args.x.dtype) {
      case Float::bf16: quantize_area<bf16>(args, area); break;
      case Float::f16: quantize_area<f16>(args, area); break;
      case Float::f32: quantize_area<f32>(args, area); break;
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::avx2
