// quantize_fp8 on AVX2: 32 values at a time, from three types of x, one true division each.
//
// The rounding to e4m3 is one float addition: |q| + 2^(e + 20), where e is the exponent of |q| or -6 if that is greater, has
// its last bit at 2^(e - 3), which is the step of e4m3 there, subnormal numbers included. So the sum's low bits hold the
// count of steps, rounded to nearest even, and the code is that count + 8 (e + 6).
// Ragged groups go through a copy padded with zeros, which change neither the largest magnitude nor another value.
#include <immintrin.h>

#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/quantize_fp8/areas.h"

namespace glm5::avx2 {
namespace {

using quantize::Area;

constexpr i64 kLanes = 32;

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
  static constexpr i64 kCount = 16;
  GLM5_INLINE static __m256i load(const T* x) { return _mm256_and_si256(load_256(x), _mm256_set1_epi16(0x7fff)); }
  GLM5_INLINE static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi16(a, b); }
};
template <>
struct Magnitude<f32> {
  using Bits = u32;
  static constexpr i64 kCount = 8;
  GLM5_INLINE static __m256i load(const f32* x) { return _mm256_and_si256(load_256(x), _mm256_set1_epi32(0x7fffffff)); }
  GLM5_INLINE static __m256i max(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
};

GLM5_INLINE u32 largest(const bf16*, __m256i magnitudes) {
  // phminposuw finds the smallest of eight, so the complement's.
  const __m128i larger_half =
      _mm_max_epi16(_mm256_castsi256_si128(magnitudes), _mm256_extracti128_si256(magnitudes, 1));
  const __m128i complement = _mm_xor_si128(larger_half, _mm_set1_epi16(-1));
  return 0xffffu ^ (static_cast<u32>(_mm_cvtsi128_si32(_mm_minpos_epu16(complement))) & 0xffffu);
}
GLM5_INLINE u32 largest(const f16*, __m256i magnitudes) { return largest(static_cast<const bf16*>(nullptr), magnitudes); }
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

// |quotient| as a code in the low 16 bits of each lane; what stands above is of no meaning. |quotient| <= 448 (1 + 2^-23).
GLM5_INLINE __m256i code_words(__m256 quotient) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(quotient), _mm256_set1_epi32(0x7fffffff));
  const __m256i exponent = _mm256_max_epi32(_mm256_and_si256(magnitude, _mm256_set1_epi32(0x7f800000)),
                                            _mm256_set1_epi32(121 << 23));
  // adder >> 20 is 8 (e + 147) = 8 (e + 6) + 1128; the low bits of the adder complete that to 65536, and being even do
  // not touch the rounding.
  const __m256i adder = _mm256_add_epi32(exponent, _mm256_set1_epi32((20 << 23) + 65536 - 1128));
  const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(adder));
  return _mm256_add_epi32(_mm256_castps_si256(sum), _mm256_srli_epi32(adder, 20));
}

// 32 quotients, in memory order, to 32 values.
GLM5_INLINE __m256i to_e4m3(__m256 q0, __m256 q1, __m256 q2, __m256 q3) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i c0 = _mm256_blend_epi16(code_words(q0), zero, 0xaa), c1 = _mm256_blend_epi16(code_words(q1), zero, 0xaa);
  const __m256i c2 = _mm256_blend_epi16(code_words(q2), zero, 0xaa), c3 = _mm256_blend_epi16(code_words(q3), zero, 0xaa);
  const __m256i codes = _mm256_packus_epi16(_mm256_packus_epi32(c0, c1), _mm256_packus_epi32(c2, c3));
  // Packing with saturation keeps the sign bits and their order.
  const __m256i s0 = _mm256_packs_epi32(_mm256_castps_si256(q0), _mm256_castps_si256(q1));
  const __m256i s1 = _mm256_packs_epi32(_mm256_castps_si256(q2), _mm256_castps_si256(q3));
  const __m256i signs = _mm256_and_si256(_mm256_packs_epi16(s0, s1), _mm256_set1_epi8(-128));
  return _mm256_permutevar8x32_epi32(_mm256_or_si256(codes, signs), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

template <class T>
GLM5_INLINE __m256i quantize_32(const T* x, __m256 scale0, __m256 scale1, __m256 scale2, __m256 scale3) {
  return to_e4m3(_mm256_div_ps(load_f32(x), scale0), _mm256_div_ps(load_f32(x + 8), scale1),
                 _mm256_div_ps(load_f32(x + 16), scale2), _mm256_div_ps(load_f32(x + 24), scale3));
}

GLM5_INLINE void store_values(e4m3* values, __m256i bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(values), bytes);
}

template <class T>
GLM5_INLINE f32 scalar_f32(const T* x) {
  if constexpr (sizeof(T) == 2) return magnitude_f32(x, x->bits & 0x7fffu);
  else return f32_of_bits(bits_of(*x) & 0x7fffffffu);
}

// Rare: the largest finite magnitude among the 128 that x has in a row, going on from amax.
template <class T>
[[gnu::noinline]] f32 finite_amax(const T* x, i64 count, f32 amax) {
  for (i64 i = 0; i < count; ++i) {
    const f32 magnitude = scalar_f32(x + i);
    if (is_finite(magnitude) && magnitude > amax) amax = magnitude;
  }
  return amax;
}

// Rare: the NaN in the place of what is not finite. `step` is the distance of neighbours in values.
template <class T>
[[gnu::noinline]] void mark_nonfinite(const T* x, i64 count, e4m3* values, i64 step) {
  for (i64 i = 0; i < count; ++i)
    if (!is_finite(scalar_f32(x + i))) values[i * step] = {kE4m3Nan};
}

template <class T>
GLM5_INLINE __m256i max_of_128(const T* x, __m256i amax) {
  using M = Magnitude<T>;
  for (i64 i = 0; i < kFp8Group; i += M::kCount) amax = M::max(amax, M::load(x + i));
  return amax;
}

template <class T>
GLM5_INLINE void quantize_128(const T* x, f32 scale, e4m3* values) {
  const __m256 scales = _mm256_set1_ps(scale);
  for (i64 i = 0; i < kFp8Group; i += kLanes) store_values(values + i, quantize_32(x + i, scales, scales, scales, scales));
}

template <class T>
GLM5_INLINE void copy(const T* from, i64 count, T* to) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

// One scale for `rows` rows of at most 128 values: a group of 1x128 or a block.
template <class T>
GLM5_INLINE f32 quantize_block(const QuantizeFp8Args& args, const T* x, i64 rows, i64 cols, e4m3* values) {
  const i64 x_stride = args.x.stride[0], value_stride = args.values.stride[0];
  const bool is_ragged = cols < kFp8Group;
  alignas(32) T padded[kFp8Group];
  alignas(32) e4m3 padded_values[kFp8Group];
  if (is_ragged) __builtin_memset(padded, 0, sizeof(padded));

  __m256i magnitudes = _mm256_setzero_si256();
  for (i64 r = 0; r < rows; ++r) {
    if (is_ragged) copy(x + r * x_stride, cols, padded);
    magnitudes = max_of_128(is_ragged ? padded : x + r * x_stride, magnitudes);
  }
  f32 amax = magnitude_f32(x, largest(x, magnitudes));
  const bool all_finite = is_finite(amax);
  if (!all_finite) {
    amax = 0;
    for (i64 r = 0; r < rows; ++r) amax = finite_amax(x + r * x_stride, cols, amax);
  }
  const f32 scale = fp8_scale(amax, args.amax_floor, args.power_of_two);

  for (i64 r = 0; r < rows; ++r) {
    if (is_ragged) {
      copy(x + r * x_stride, cols, padded);
      quantize_128(padded, scale, padded_values);
      copy(padded_values, cols, values + r * value_stride);
    } else {
      quantize_128(x + r * x_stride, scale, values + r * value_stride);
    }
    if (!all_finite) mark_nonfinite(x + r * x_stride, cols, values + r * value_stride, 1);
  }
  return scale;
}

template <class T>
void quantize_rows(const QuantizeFp8Args& args, const Area& area) {
  // Scales are column-major: gather those of the 16 rows, so that each cache line is written at once.
  alignas(64) f32 scales[quantize::kRowCols / kFp8Group][quantize::kRowTile];
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin;
  for (i64 row = 0; row < rows; ++row) {
    for (i64 col = area.col_begin; col < area.col_end; col += kFp8Group) {
      scales[(col - area.col_begin) / kFp8Group][row] =
          quantize_block(args, x.at(area.row_begin + row, col), 1, smaller(kFp8Group, area.col_end - col),
                         args.values.at(area.row_begin + row, col));
    }
  }
  for (i64 col = area.col_begin; col < area.col_end; col += kFp8Group)
    for (i64 row = 0; row < rows; ++row)
      *args.scales.at(area.row_begin + row, col / kFp8Group) = scales[(col - area.col_begin) / kFp8Group][row];
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
  __builtin_memset(maxima, 0, cols * sizeof(*maxima));
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    const T* line = x.at(row, area.col_begin);
    for (i64 c = 0; c < whole; c += M::kCount) {
      __m256i* maximum = reinterpret_cast<__m256i*>(maxima + c);
      _mm256_store_si256(maximum, M::max(_mm256_load_si256(maximum), M::load(line + c)));
    }
    for (i64 c = whole; c < cols; ++c) {
      typename M::Bits bits;
      __builtin_memcpy(&bits, line + c, sizeof(bits));
      bits &= static_cast<typename M::Bits>(~typename M::Bits{0} >> 1);
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

// 32 columns of one group: quantised row by row, then turned.
template <class T>
GLM5_INLINE void quantize_32_columns(const QuantizeFp8Args& args, const Area& area, i64 col, const f32* scales) {
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, cols = smaller(kLanes, area.col_end - col);
  alignas(32) e4m3 tile[kFp8Group][kLanes];
  alignas(32) e4m3 columns[kLanes][kFp8Group];
  alignas(32) T padded[kLanes];
  if (cols < kLanes) __builtin_memset(padded, 0, sizeof(padded));
  const __m256 s0 = _mm256_loadu_ps(scales), s1 = _mm256_loadu_ps(scales + 8);
  const __m256 s2 = _mm256_loadu_ps(scales + 16), s3 = _mm256_loadu_ps(scales + 24);
  for (i64 r = 0; r < rows; ++r) {
    const T* line = x.at(area.row_begin + r, col);
    if (cols < kLanes) copy(line, cols, padded);
    store_values(tile[r], quantize_32(cols < kLanes ? padded : line, s0, s1, s2, s3));
  }
  if (rows % 16 != 0) __builtin_memset(tile[rows], 0, (16 - rows % 16) * kLanes);  // turned, but not copied
  for (i64 r = 0; r < rows; r += 16) transpose_16_rows(tile + r, columns, r);
  for (i64 c = 0; c < cols; ++c) copy(columns[c], rows, args.values.at(col + c, area.row_begin));
}

template <class T>
void quantize_columns(const QuantizeFp8Args& args, const Area& area) {
  if (area.group < 0) return quantize::clear_values(args, area);
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, cols = area.col_end - area.col_begin;
  alignas(32) typename Magnitude<T>::Bits maxima[quantize::kColumnCols];
  alignas(32) f32 scales[quantize::kColumnCols + kLanes];
  column_maxima(x, area, maxima);
  bool all_finite = true;
  for (i64 c = 0; c < cols; ++c) {
    f32 amax = magnitude_f32(x.data, maxima[c]);
    if (!is_finite(amax)) {
      all_finite = false;
      amax = 0;
      for (i64 r = 0; r < rows; ++r) amax = finite_amax(x.at(area.row_begin + r, area.col_begin + c), 1, amax);
    }
    scales[c] = fp8_scale(amax, args.amax_floor, args.power_of_two);
    *args.scales.at(area.col_begin + c, area.group) = rows > 0 ? scales[c] : 0;
  }
  if (rows <= 0) return;
  for (i64 c = cols; c < cols + kLanes; ++c) scales[c] = 1;
  for (i64 c = 0; c < cols; c += kLanes) quantize_32_columns<T>(args, area, area.col_begin + c, scales + c);
  if (all_finite) return;
  for (i64 r = area.row_begin; r < area.row_end; ++r)
    mark_nonfinite(x.at(r, area.col_begin), cols, args.values.at(area.col_begin, r), args.values.stride[0]);
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
