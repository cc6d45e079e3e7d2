// fp8_gemm with AVX-512: panels of 32 columns, decoded to f32 (16 KiB); six rows at a time. Few rows come packed by
// AVX2.
#include "cpu/avx512.h"
#include "ops/fp8_gemm/vectors.h"

namespace glm5::avx512 {
namespace {

// 16 columns x 64 k of e4m3 to panel[k][16 of 32] in f32, divided by 256 as avx2::f16_of_e4m3 does it.
template <bool WithNan>
GLM5_INLINE void decode_half(__m512i (&x)[16], f32* panel) {
  transpose_16x16_bytes(x);
  const auto store = [&](__m128i bytes, i64 k) [[gnu::always_inline]] {
    // The sign fills the upper byte, then all bits move to where f16 has them but one copy of the sign.
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    __m256i halves = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<i16>(0xbf80)));
    if constexpr (WithNan) halves = avx2::f16_nan(halves);
    _mm512_store_ps(panel + k * 32, _mm512_cvtph_ps(halves));
  };
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) {
    store(_mm512_castsi512_si128(x[k]), k);
    store(_mm512_extracti32x4_epi32(x[k], 1), 16 + k);
    store(_mm512_extracti32x4_epi32(x[k], 2), 32 + k);
    store(_mm512_extracti32x4_epi32(x[k], 3), 48 + k);
  }
}

[[gnu::noinline]] void decode_with_nan(const u8* columns, i64 stride, f32* panel) {
  for (i64 k = 0; k < cpu::kGemmBlock; k += 64) {
    __m512i x[16];
    for (int j = 0; j < 16; ++j) x[j] = _mm512_loadu_si512(columns + j * stride + k);
    decode_half<true>(x, panel + k * 32);
  }
}

struct Decoder {
  using Value = f32;
  static constexpr i64 kColumns = 32;
  static constexpr i64 kWideRows = 0;

  // 16 columns x 128 k. NaN is rare: it is looked for on the way and decoded again where found.
  GLM5_INLINE static void decode(const u8* columns, i64 stride, const u8* later, f32* panel) {
    __m512i largest = _mm512_setzero_si512();  // of the doubled bytes: 0xfe is NaN
#pragma GCC unroll 1
    for (i64 k = 0; k < cpu::kGemmBlock; k += 64) {
      __m512i x[16];
#pragma GCC unroll 16
      for (int j = 0; j < 16; ++j) {
        x[j] = _mm512_loadu_si512(columns + j * stride + k);
        largest = _mm512_max_epu8(largest, _mm512_add_epi8(x[j], x[j]));
        __builtin_prefetch(later + j * stride + k);
      }
      decode_half<false>(x, panel + k * 32);
    }
    if (_mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(static_cast<i8>(0xfe))))
      decode_with_nan(columns, stride, panel);
  }

  GLM5_INLINE static const f32* widen(const f32* panel) { return panel; }
};

}  // namespace

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  cpu::multiply_items<fp8_gemm_vectors::Kernel<Lanes, Decoder>>(task, begin, end, thread);
  cpu::restore_floats(before);
}

}  // namespace glm5::avx512
