// dequantize_fp8 on AVX2: 16 values at a time.
//
// The 128x1 form turns 16 columns x 32 rows of codes in registers first.
#include <immintrin.h>

#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/dequantize_fp8/areas.h"

namespace glm5::avx2 {
namespace {

using dequantize::Area;

constexpr i64 kLanes = 16;

// The 16 products of codes and scales, rounded to T. Every NaN becomes the one of core/fp8.h.
struct Products {
  __m256 low, high;
};

GLM5_INLINE __m256 one_nan(__m256 product) {
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
  return _mm256_blendv_ps(product, nan, _mm256_cmp_ps(product, product, _CMP_UNORD_Q));
}

GLM5_INLINE Products multiply(__m128i codes, __m256 scales_low, __m256 scales_high) {
  const TwoF32x8 values = decode_e4m3x16(codes);
  const __m256 exact = _mm256_set1_ps(256);  // what decode_e4m3x16 divides by
  return {one_nan(_mm256_mul_ps(_mm256_mul_ps(values.low, exact), scales_low)),
          one_nan(_mm256_mul_ps(_mm256_mul_ps(values.high, exact), scales_high))};
}

GLM5_INLINE void store(f32* x, const Products& products) {
  _mm256_storeu_ps(x, products.low);
  _mm256_storeu_ps(x + 8, products.high);
}

GLM5_INLINE void store(f16* x, const Products& products) {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x), _mm256_cvtps_ph(products.low, kNearestEven));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(x + 8), _mm256_cvtps_ph(products.high, kNearestEven));
}

// Nearest even, in the high halves; the one NaN has room for it, so none needs care.
GLM5_INLINE __m256i rounded_to_bf16(__m256 product) {
  const __m256i bits = _mm256_castps_si256(product);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}

GLM5_INLINE void store(bf16* x, const Products& products) {
  const __m256i words = _mm256_packus_epi32(rounded_to_bf16(products.low), rounded_to_bf16(products.high));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm256_permute4x64_epi64(words, 0xd8));
}

template <class T>
GLM5_INLINE void store_some(T* x, const Products& products, i64 count) {
  if (count >= kLanes) return store(x, products);
  alignas(32) T all[kLanes];
  store(all, products);
  __builtin_memcpy(x, all, count * sizeof(T));
}

GLM5_INLINE __m128i load_some(const e4m3* values, i64 count) {
  if (count >= kLanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  alignas(16) e4m3 all[kLanes] = {};
  __builtin_memcpy(all, values, count);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(all));
}

// Groups 1x128 and 128x128: one scale for every 128 columns of a row.
template <class T>
void dequantize_rows(const DequantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<T>();
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    for (i64 group = area.col_begin; group < area.col_end; group += kFp8Group) {
      const __m256 scale = _mm256_set1_ps(dequantize::scale_at(args, area, row, group));
      const i64 cols = smaller(kFp8Group, area.col_end - group);
      const e4m3* values = args.values.at(row, group);
      T* out = x.at(row, group);
      for (i64 col = 0; col < cols; col += kLanes)
        store_some(out + col, multiply(load_some(values + col, cols - col), scale, scale), cols - col);
    }
  }
}

// 16 columns x 32 rows: each half of a vector holds 16 rows of a column, and turned 16 columns of a row.
template <class T>
GLM5_INLINE void dequantize_tile(const DequantizeFp8Args& args, const Tensor<T, 2>& x, i64 row, i64 rows, i64 col,
                                 i64 cols, const f32* scales) {
  __m256i tile[16];
  for (i64 c = 0; c < kLanes; ++c) {
    if (c < cols) {
      const e4m3* values = args.values.at(col + c, row);
      tile[c] = _mm256_set_m128i(rows > 16 ? load_some(values + 16, rows - 16) : _mm_setzero_si128(),
                                 load_some(values, rows));
    } else {
      tile[c] = _mm256_setzero_si256();
    }
  }
  transpose_16x16_bytes(tile);
  const __m256 low = _mm256_load_ps(scales), high = _mm256_load_ps(scales + 8);
  for (i64 r = 0; r < smaller(rows, 16); ++r)
    store_some(x.at(row + r, col), multiply(_mm256_castsi256_si128(tile[r]), low, high), cols);
  for (i64 r = 16; r < rows; ++r)
    store_some(x.at(row + r, col), multiply(_mm256_extracti128_si256(tile[r - 16], 1), low, high), cols);
}

template <class T>
void dequantize_columns(const DequantizeFp8Args& args, const Area& area) {
  const auto x = args.x.as<T>();
  if (area.group < 0) {
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      __builtin_memset(x.at(row, area.col_begin), 0, (area.col_end - area.col_begin) * sizeof(T));
    return;
  }
  alignas(32) f32 scales[dequantize::kColumnCols] = {};
  for (i64 col = area.col_begin; col < area.col_end; ++col)
    scales[col - area.col_begin] = *args.scales.at(col, area.group);
  for (i64 row = area.row_begin; row < area.row_end; row += 32) {
    for (i64 col = area.col_begin; col < area.col_end; col += kLanes)
      dequantize_tile(args, x, row, smaller(32, area.row_end - row), col, smaller(kLanes, area.col_end - col),
                      scales + (col - area.col_begin));
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

}  // namespace glm5::avx2
