// fp8_gemm with AVX2: panels of 16 columns, three rows at a time. A panel is decoded to f16 (4 KiB). For few rows f16
// becomes f32 as it is loaded: vcvtph2ps from memory runs beside the multiply-adds (on Zen 3 two a cycle; from a
// register only one). For many rows the panel is widened to f32 first.
#include "ops/fp8_gemm/vectors.h"

namespace glm5::avx2 {
namespace {

GLM5_INLINE __m256i load_bytes(const u8* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
GLM5_INLINE void store_halves(u16* to, __m256i halves) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), halves); }

// 16 columns x 32 k of e4m3.
template <bool WithNan>
GLM5_INLINE void decode_step(__m256i (&x)[16], u16* panel) {
  transpose_16x16_bytes(x);
  const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    __m256i left = f16_of_e4m3(_mm256_unpacklo_epi8(zero, x[j])), right = f16_of_e4m3(_mm256_unpackhi_epi8(zero, x[j]));
    if constexpr (WithNan) {
      left = f16_nan(left);
      right = f16_nan(right);
    }
    store_halves(panel + j * 32, left);
    store_halves(panel + j * 32 + 16, right);
  }
}

[[gnu::noinline]] void decode_with_nan(const u8* columns, i64 stride, u16* panel) {
  for (i64 k = 0; k < cpu::kGemmBlock; k += 32) {
    __m256i x[16];
    for (int j = 0; j < 16; ++j) x[j] = load_bytes(columns + j * stride + k);
    decode_step<true>(x, panel + k * 16);
  }
}

struct Decoder {
  using Value = u16;
  static constexpr i64 kColumns = 16;
  // From so many rows on the panel is widened: 5 % faster for 256 rows on Zen 3, 10 % slower for 16.
  static constexpr i64 kWideRows = 48;

  // 16 columns x 128 k. NaN is rare: it is looked for on the way and decoded again where found.
  GLM5_INLINE static void decode(const u8* columns, i64 stride, const u8* later, u16* panel) {
    __m256i largest = _mm256_setzero_si256();  // of the doubled bytes: 0xfe is NaN
    for (i64 k = 0; k < cpu::kGemmBlock; k += 32) {
      __m256i x[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        x[j] = load_bytes(columns + j * stride + k);
        largest = _mm256_max_epu8(largest, _mm256_add_epi8(x[j], x[j]));
        if ((k & 32) == 0) __builtin_prefetch(later + j * stride + k);
      }
      decode_step<false>(x, panel + k * 16);
    }
    const __m256i is_nan = _mm256_cmpeq_epi8(largest, _mm256_set1_epi8(static_cast<i8>(0xfe)));
    if (_mm256_movemask_epi8(is_nan)) decode_with_nan(columns, stride, panel);
  }

  // The panel in f32, [k][16], behind the one in f16.
  GLM5_INLINE static const f32* widen(u16* panel) {
    f32* wide = reinterpret_cast<f32*>(panel + cpu::kGemmBlock * kColumns);
    for (i64 step = 0; step < cpu::kGemmBlock; step += cpu::kGemmStep) {
#pragma GCC unroll 4
      for (i64 j = 0; j < 16; ++j) {
        const u16* from = panel + step * kColumns + j * 32;
        f32* row = wide + (step + j) * kColumns;
        Lanes::store(row, Lanes::load(from));
        Lanes::store(row + 8, Lanes::load(from + 16));
        Lanes::store(row + 16 * kColumns, Lanes::load(from + 8));
        Lanes::store(row + 16 * kColumns + 8, Lanes::load(from + 24));
      }
    }
    return wide;
  }
};

using Kernel = fp8_gemm_vectors::Kernel<Lanes, Decoder>;

}  // namespace

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  const cpu::FloatState before = cpu::use_default_floats();
  cpu::pack_items<Kernel>(task, begin, end);
  cpu::restore_floats(before);
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  cpu::multiply_items<Kernel>(task, begin, end, thread);
  cpu::restore_floats(before);
}

}  // namespace glm5::avx2
