// dequantize_fp8 on AVX-512: 16 values at a time, tails by mask.
//
// The 128x1 form turns 16 columns x 64 rows of codes in registers first.
#include "cpu/avx512.h"
#include "cpu/float_environment.h"
#include "ops/dequantize_fp8/areas.h"

namespace glm5::avx512 {
namespace {

using dequantize::Area;

constexpr i64 kLanes = 16;

// The 16 products of codes and scales. Every NaN becomes the one of core/fp8.h.
GLM5_INLINE __m512 multiply(__m128i codes, __m512 scales) {
  const __m256i halves = avx2::f16_nan(avx2::f16_of_e4m3(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8)));
  const __m512 values = _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256));  // exact
  const __m512 product = _mm512_mul_ps(values, scales);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(product, product, _CMP_UNORD_Q);
  return _mm512_mask_blend_ps(is_nan, product, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

GLM5_INLINE void store(f32* x, __m512 product, __mmask16 live) { store_f32x16(x, product, live); }
GLM5_INLINE void store(bf16* x, __m512 product, __mmask16 live) { store_f32x16(x, product, live); }
GLM5_INLINE void store(f16* x, __m512 product, __mmask16 live) {
  _mm256_mask_storeu_epi16(x, live, _mm512_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Groups 1x128 and 128x128: one scale for every 128 columns of a row.
template <class T>
void dequantize_rows(const DequantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<T>();
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    for (i64 group = area.col_begin; group < area.col_end; group += kFp8Group) {
      const __m512 scale = _mm512_set1_ps(dequantize::scale_at(args, area, row, group));
      for (i64 col = group; col < smaller(group + kFp8Group, area.col_end); col += kLanes) {
        const __mmask16 live = first_of_16(area.col_end - col);
        store(x.at(row, col), multiply(_mm_maskz_loadu_epi8(live, args.values.at(row, col)), scale), live);
      }
    }
  }
}

// 16 columns x 64 rows: each quarter of a vector holds 16 rows of a column, and turned 16 columns of a row.
template <class T>
GLM5_INLINE void dequantize_tile(const DequantizeFp8Args& args, const Tensor<T, 2>& x, i64 row, i64 rows, i64 col,
                                 i64 cols, __m512 scales) {
  __m512i tile[kLanes];
#pragma GCC unroll 16
  for (i64 c = 0; c < kLanes; ++c) {
    tile[c] = _mm512_setzero_si512();
    if (c < cols) tile[c] = _mm512_maskz_loadu_epi8(first_of_64(rows), args.values.at(col + c, row));
  }
  transpose_16x16_bytes(tile);
  alignas(64) e4m3 turned[64][kLanes];
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    _mm_store_si128(reinterpret_cast<__m128i*>(turned[r]), _mm512_castsi512_si128(tile[r]));
    _mm_store_si128(reinterpret_cast<__m128i*>(turned[r + 16]), _mm512_extracti32x4_epi32(tile[r], 1));
    _mm_store_si128(reinterpret_cast<__m128i*>(turned[r + 32]), _mm512_extracti32x4_epi32(tile[r], 2));
    _mm_store_si128(reinterpret_cast<__m128i*>(turned[r + 48]), _mm512_extracti32x4_epi32(tile[r], 3));
  }
  for (i64 r = 0; r < smaller(rows, 64); ++r) {
    const __m128i codes = _mm_load_si128(reinterpret_cast<const __m128i*>(turned[r]));
    store(x.at(row + r, col), multiply(codes, scales), first_of_16(cols));
  }
}

template <class T>
void dequantize_columns(const DequantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<T>();
  if (area.group < 0) {
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      __builtin_memset(x.at(row, area.col_begin), 0, (area.col_end - area.col_begin) * sizeof(T));
    return;
  }
  alignas(64) f32 scales[dequantize::kColumnCols] = {};
  for (i64 col = area.col_begin; col < area.col_end; ++col)
    scales[col - area.col_begin] = *args.scales.at(col, area.group);
  for (i64 row = area.row_begin; row < area.row_end; row += 64) {
    for (i64 col = area.col_begin; col < area.col_end; col += kLanes)
      dequantize_tile(args, x, row, area.row_end - row, col, area.col_end - col,
                      _mm512_load_ps(scales + (col - area.col_begin)));
  }
}

template <class T>
GLM5_INLINE void dequantize_area(const DequantizeFp8Args& args, const Area& area) {
  return args.group == Fp8Group::column ? dequantize_columns<T>(args, area) : dequantize_rows<T>(args, area);
}

}  // namespace

void dequantize_fp8(const DequantizeFp8Args& args, i64 begin, i64 end, i64) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 item = begin; item < end; ++item) {
    const Area area = dequantize::area_of(args, item);
    switch (args.x.dtype) {
      case Float::bf16: dequantize_area<bf16>(args, area); break;
      case Float::f16: dequantize_area<f16>(args, area); break;
      case Float::f32: dequantize_area<f32>(args, area); break;
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::avx512
