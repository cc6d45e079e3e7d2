// quantize_fp8 on AVX-512: 16 values at a time, tails by mask.
//
// The quotient and its rounding are those of avx2.cpp, which explains them: a product with the reciprocal, mended by
// its remainder, and an addition whose last bit is the step of e4m3. What is not finite, and scales so small that the
// remainder could be inexact, are masks here and no path of their own.
#include "cpu/avx512.h"
#include "cpu/float_environment.h"
#include "ops/quantize_fp8/areas.h"

namespace glm5::avx512 {
namespace {

using quantize::Area;

constexpr i64 kLanes = 16;
constexpr i64 kColumns = 64;  // of a tile that is turned

// How far ahead of the values in work memory is read; see avx2.cpp.
constexpr i64 kRowAhead = 2048;
constexpr i64 kBlockAhead = 2 * kFp8Group;
constexpr i64 kColumnAhead = quantize::kColumnCols;
constexpr i64 kStreamedBytes = 4 << 20;

GLM5_INLINE __m512 load(const f32* x, __mmask16 live) { return load_f32x16(x, live); }
GLM5_INLINE __m512 load(const bf16* x, __mmask16 live) { return load_f32x16(x, live); }
GLM5_INLINE __m512 load(const f16* x, __mmask16 live) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(live, x)); }

GLM5_INLINE __m512i magnitude_of(__m512 x) {
  return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
GLM5_INLINE __mmask16 is_finite(__m512i magnitude) {
  return _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
}
// The larger of amax and the finite ones of 16 magnitudes, which order as integers.
template <class T>
GLM5_INLINE __m512i max_finite(__m512i amax, const T* x, __mmask16 live) {
  const __m512i magnitude = magnitude_of(load(x, live));
  return _mm512_mask_max_epi32(amax, is_finite(magnitude), amax, magnitude);
}

// Scales and what dividing by them takes.
struct Divisor {
  __m512 scale, reciprocal;
  __mmask16 is_tiny;  // scales below 2^-90: a true division
  GLM5_INLINE explicit Divisor(__m512 scales)
      : scale(scales),
        reciprocal(_mm512_div_ps(_mm512_set1_ps(1), scales)),
        is_tiny(_mm512_cmp_ps_mask(scales, _mm512_set1_ps(0x1p-90f), _CMP_LT_OQ)) {}
};

// fp8_scale(), for sixteen groups.
GLM5_INLINE __m512 scales_of(__m512i amax, const QuantizeFp8Args& args) {
  const __m512 floored = _mm512_max_ps(_mm512_castsi512_ps(amax), _mm512_set1_ps(args.amax_floor));
  const __m512 scale = _mm512_div_ps(floored, _mm512_set1_ps(kE4m3Max));
  if (!args.power_of_two) return scale;
  const __m512i above = _mm512_add_epi32(_mm512_castps_si512(scale), _mm512_set1_epi32(0x7fffff));
  return _mm512_castsi512_ps(_mm512_and_si512(above, _mm512_set1_epi32(static_cast<i32>(0xff800000))));
}

GLM5_INLINE __m128i quantize_16(__m512 x, const Divisor& by) {
  const __m512i magnitude = magnitude_of(x);
  const __m512 positive = _mm512_castsi512_ps(magnitude);
  const __m512 estimate = _mm512_mul_ps(positive, by.reciprocal);
  const __m512 remainder = _mm512_fnmadd_ps(estimate, by.scale, positive);
  __m512 quotient = _mm512_fmadd_ps(remainder, by.reciprocal, estimate);
  if (by.is_tiny) quotient = _mm512_mask_div_ps(quotient, by.is_tiny, positive, by.scale);
  const __m512i exponent =
      _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(quotient), _mm512_set1_epi32(0x7f800000)),
                       _mm512_set1_epi32(121 << 23));
  const __m512i adder = _mm512_add_epi32(exponent, _mm512_set1_epi32((20 << 23) + 65536 - 1128));
  const __m512 sum = _mm512_add_ps(quotient, _mm512_castsi512_ps(adder));
  const __m512i code = _mm512_add_epi32(_mm512_castps_si512(sum), _mm512_srli_epi32(adder, 20));
  // 0xca: bits of the second where the first has ones, else of the third.
  const __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(x), 24);
  const __m512i value = _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x80), sign, code, 0xca);
  return _mm512_cvtepi32_epi8(_mm512_mask_blend_epi32(is_finite(magnitude), _mm512_set1_epi32(kE4m3Nan), value));
}

template <class T>
GLM5_INLINE void quantize_row(const T* x, i64 cols, const Divisor& by, e4m3* values, i64 ahead) {
  for (i64 c = 0; c < cols; c += kLanes) {
    const __mmask16 live = first_of_16(cols - c);
    if (c * sizeof(T) % 64 == 0) __builtin_prefetch(x + c + ahead);
    _mm_mask_storeu_epi8(values + c, live, quantize_16(load(x + c, live), by));
  }
}

// The scale of one group among sixteen.
GLM5_INLINE Divisor pick(const Divisor& divisors, i64 group) {
  const __m512i lane = _mm512_set1_epi32(static_cast<i32>(group));
  Divisor by = divisors;
  by.scale = _mm512_permutexvar_ps(lane, divisors.scale);
  by.reciprocal = _mm512_permutexvar_ps(lane, divisors.reciprocal);
  by.is_tiny = (divisors.is_tiny >> group) & 1 ? 0xffff : 0;
  return by;
}

// Groups of 1 x 128, sixteen at a time: their scales are divided together, so that no group waits for its own.
template <class T>
GLM5_INLINE void quantize_sixteen(const QuantizeFp8Args& args, const T* x, i64 cols, e4m3* values, f32* scales) {
  alignas(64) i32 amax[16] = {};
  for (i64 first = 0; first < cols; first += kFp8Group) {
    __m512i magnitudes = _mm512_setzero_si512();
    for (i64 c = first; c < smaller(first + kFp8Group, cols); c += kLanes)
      magnitudes = max_finite(magnitudes, x + c, first_of_16(cols - c));
    amax[first / kFp8Group] = _mm512_reduce_max_epi32(magnitudes);
  }
  const Divisor divisors(scales_of(_mm512_load_si512(amax), args));
  _mm512_store_ps(scales, divisors.scale);
  for (i64 first = 0; first < cols; first += kFp8Group)
    quantize_row(x + first, smaller(kFp8Group, cols - first), pick(divisors, first / kFp8Group), values + first,
                 kRowAhead);
}

template <class T>
void quantize_rows(const QuantizeFp8Args& args, const Area& area) {
  // Scales are column-major: gather those of the 16 rows, so that each cache line is written at once.
  constexpr i64 kGroups = quantize::kRowCols / kFp8Group, kStep = 16 * kFp8Group;
  alignas(64) f32 scales[quantize::kRowTile][kGroups];
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, first = area.col_begin / kFp8Group;
  for (i64 row = 0; row < rows; ++row) {
    for (i64 col = area.col_begin; col < area.col_end; col += kStep)
      quantize_sixteen(args, x.at(area.row_begin + row, col), smaller(kStep, area.col_end - col),
                       args.values.at(area.row_begin + row, col), &scales[row][col / kFp8Group - first]);
  }
  for (i64 group = first; group < ceil_div(area.col_end, kFp8Group); ++group)
    for (i64 row = 0; row < rows; ++row) *args.scales.at(area.row_begin + row, group) = scales[row][group - first];
}

template <class T>
void quantize_blocks(const QuantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<const T>();
  for (i64 first = area.col_begin; first < area.col_end; first += kFp8Group) {
    const i64 end = smaller(first + kFp8Group, area.col_end);
    __m512i magnitudes = _mm512_setzero_si512();
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      for (i64 col = first; col < end; col += kLanes)
        magnitudes = max_finite(magnitudes, x.at(row, col), first_of_16(end - col));
    const Divisor by(scales_of(_mm512_set1_epi32(_mm512_reduce_max_epi32(magnitudes)), args));
    *args.scales.at(area.row_begin / kFp8Group, first / kFp8Group) = _mm512_cvtss_f32(by.scale);
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      quantize_row(x.at(row, first), end - first, by, args.values.at(row, first), kBlockAhead);
  }
}

// tile[r][c] of 16 rows to columns[c][r]: 64 columns, whose next 16 bytes these are.
GLM5_INLINE void transpose_16_rows(const e4m3 (*tile)[kColumns], e4m3 (*columns)[kFp8Group], i64 row) {
  __m512i a[16];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) a[r] = _mm512_load_si512(tile[r]);
  transpose_16x16_bytes(a);
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c][row]), _mm512_castsi512_si128(a[c]));
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c + 16][row]), _mm512_extracti32x4_epi32(a[c], 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c + 32][row]), _mm512_extracti32x4_epi32(a[c], 2));
    _mm_store_si128(reinterpret_cast<__m128i*>(&columns[c + 48][row]), _mm512_extracti32x4_epi32(a[c], 3));
  }
}

GLM5_INLINE void store_column(const e4m3* column, i64 rows, e4m3* values, bool past_caches) {
  if (past_caches && rows == kFp8Group && reinterpret_cast<std::uintptr_t>(values) % 64 == 0) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(values), _mm512_load_si512(column));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(values + 64), _mm512_load_si512(column + 64));
    return;
  }
  _mm512_mask_storeu_epi8(values, first_of_64(rows), _mm512_load_si512(column));
  _mm512_mask_storeu_epi8(values + 64, first_of_64(rows - 64), _mm512_load_si512(column + 64));
}

// 64 columns of one group: quantised row by row, then turned.
template <class T>
GLM5_INLINE void quantize_64_columns(const QuantizeFp8Args& args, const Area& area, i64 first, const i32* maxima) {
  const auto x = args.x.as<const T>();
  const bool past_caches = args.values.shape[0] * args.values.shape[1] >= kStreamedBytes;
  const i64 rows = area.row_end - area.row_begin, cols = smaller(kColumns, area.col_end - first);
  alignas(64) e4m3 tile[kFp8Group][kColumns];
  alignas(64) e4m3 columns[kColumns][kFp8Group];
  for (i64 c = 0; c < kColumns; c += kLanes) {
    const Divisor by(scales_of(_mm512_load_si512(maxima + c), args));
    alignas(64) f32 scales[kLanes];
    _mm512_store_ps(scales, by.scale);
    for (i64 i = 0; i < smaller(kLanes, cols - c); ++i) *args.scales.at(first + c + i, area.group) = scales[i];
    for (i64 r = 0; r < rows; ++r) {
      const T* line = x.at(area.row_begin + r, first + c);
      if (c * sizeof(T) % 64 == 0) __builtin_prefetch(line + kColumnAhead);
      _mm_store_si128(reinterpret_cast<__m128i*>(&tile[r][c]), quantize_16(load(line, first_of_16(cols - c)), by));
    }
  }
  if (rows % 16 != 0) __builtin_memset(tile[rows], 0, (16 - rows % 16) * kColumns);  // turned, but not stored
  for (i64 r = 0; r < rows; r += 16) transpose_16_rows(tile + r, columns, r);
  for (i64 c = 0; c < cols; ++c) store_column(columns[c], rows, args.values.at(first + c, area.row_begin), past_caches);
}

template <class T>
void quantize_columns(const QuantizeFp8Args& args, const Area& area) {
  if (area.group < 0) return quantize::clear_values(args, area);
  const auto x = args.x.as<const T>();
  if (area.row_begin >= area.row_end) {
    for (i64 col = area.col_begin; col < area.col_end; ++col) *args.scales.at(col, area.group) = 0;
    return;
  }
  const i64 cols = area.col_end - area.col_begin;
  alignas(64) i32 maxima[quantize::kColumnCols] = {};
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    const T* line = x.at(row, area.col_begin);
    for (i64 c = 0; c < cols; c += kLanes)
      _mm512_store_si512(maxima + c, max_finite(_mm512_load_si512(maxima + c), line + c, first_of_16(cols - c)));
  }
  for (i64 c = 0; c < cols; c += kColumns) quantize_64_columns<T>(args, area, area.col_begin + c, maxima + c);
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

}  // namespace glm5::avx512
