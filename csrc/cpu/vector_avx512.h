// cpu/vector.h on AVX-512 (F, BW, VL, DQ); vector_avx2.h says what each function is.
#pragma once

#include "cpu/avx512.h"
#include "cpu/vector_avx2.h"

namespace glm5::avx512 {

struct Vector : cpu::VectorTypes<64>, avx2::Narrow {
  GLM5_INLINE static u8s load(const void* from) { return (u8s)_mm512_loadu_si512(from); }
  GLM5_INLINE static void store(void* to, u8s x) { _mm512_storeu_si512(to, (__m512i)x); }
  GLM5_INLINE static void stream(void* to, u8s x) { _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)x); }
  GLM5_INLINE static void fence() { _mm_sfence(); }

  GLM5_INLINE static u8s repeat_16(const void* from) {
    return (u8s)_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  GLM5_INLINE static u8s load_lanes(const void* from, i64 step) {
    const char* bytes = static_cast<const char*>(from);
    return (u8s)pair((__m256i)avx2::Vector::load_lanes(bytes, step),
                     (__m256i)avx2::Vector::load_lanes(bytes + 2 * step, step));
  }
  GLM5_INLINE static void store_lanes(void* to, i64 step, u8s x) {
    char* bytes = static_cast<char*>(to);
    avx2::Vector::store_lanes(bytes, step, (avx2::Vector::u8s)low_half(x));
    avx2::Vector::store_lanes(bytes + 2 * step, step, (avx2::Vector::u8s)high_half(x));
  }

  GLM5_INLINE static u8s choose(u8s lane, u8s index) { return (u8s)_mm512_shuffle_epi8((__m512i)lane, (__m512i)index); }
  template <int kSize>
  GLM5_INLINE static u8s interleave_low(u8s a, u8s b) {
    if constexpr (kSize == 1) return (u8s)_mm512_unpacklo_epi8((__m512i)a, (__m512i)b);
    if constexpr (kSize == 2) return (u8s)_mm512_unpacklo_epi16((__m512i)a, (__m512i)b);
    if constexpr (kSize == 4) return (u8s)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b);
    if constexpr (kSize == 8) return (u8s)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
  }
  template <int kSize>
  GLM5_INLINE static u8s interleave_high(u8s a, u8s b) {
    if constexpr (kSize == 1) return (u8s)_mm512_unpackhi_epi8((__m512i)a, (__m512i)b);
    if constexpr (kSize == 2) return (u8s)_mm512_unpackhi_epi16((__m512i)a, (__m512i)b);
    if constexpr (kSize == 4) return (u8s)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
    if constexpr (kSize == 8) return (u8s)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
  }
  GLM5_INLINE static u8s low_halves_first(u8s x) {
    return (u8s)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), (__m512i)x);
  }
  GLM5_INLINE static u8s halves_to_lanes(u8s x) {
    return (u8s)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), (__m512i)x);
  }
  GLM5_INLINE static u8s rotate_lanes(u8s x, i64 lanes) {
    return (u8s)(lanes == 1 ? _mm512_shuffle_i32x4((__m512i)x, (__m512i)x, 0x93)
                            : _mm512_shuffle_i32x4((__m512i)x, (__m512i)x, 0x4e));
  }
  GLM5_INLINE static u8s pack_signs(u16s a, u16s b) { return (u8s)_mm512_packs_epi16((__m512i)a, (__m512i)b); }

  GLM5_INLINE static u8s select(u8s mask, u8s a, u8s b) {
    return (u8s)_mm512_ternarylogic_epi64((__m512i)mask, (__m512i)a, (__m512i)b, 0xca);
  }
  GLM5_INLINE static u8s reduce(u8s a, u8s b) { return (u8s)_mm512_subs_epu8((__m512i)a, (__m512i)b); }
  GLM5_INLINE static u16s reduce(u16s a, u16s b) { return (u16s)_mm512_subs_epu16((__m512i)a, (__m512i)b); }
  GLM5_INLINE static bool any(u8s x) { return _mm512_test_epi64_mask((__m512i)x, (__m512i)x) != 0; }

  GLM5_INLINE static f32s multiply_add(f32s a, f32s b, f32s c) { return _mm512_fmadd_ps(a, b, c); }
  GLM5_INLINE static f32s negate_multiply_add(f32s a, f32s b, f32s c) { return _mm512_fnmadd_ps(a, b, c); }

  GLM5_INLINE static f32s load_f32(const f32* x) { return load_f32x16(x, 0xffff); }
  GLM5_INLINE static f32s load_f32(const bf16* x) { return load_f32x16(x, 0xffff); }
  GLM5_INLINE static f32s load_f32(const f16* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  GLM5_INLINE static f32s load_f32(const e4m3* values) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    return _mm512_cvtph_ps(avx2::f16_of_e4m3(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8)));
  }
  GLM5_INLINE static void store_f32(f32* to, f32s x) { store_f32x16(to, x, 0xffff); }
  GLM5_INLINE static void store_f32(bf16* to, f32s x) { store_f32x16(to, x, 0xffff); }
  GLM5_INLINE static void store_f32(f16* to, f32s x) {
    const __m256i halves = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
  }

  GLM5_INLINE static u8s join(const u32s (&codes)[4], const u32s (&x)[4]) {
    return (u8s)pair(_mm256_set_m128i(join(codes[1], x[1]), join(codes[0], x[0])),
                     _mm256_set_m128i(join(codes[3], x[3]), join(codes[2], x[2])));
  }

 private:
  GLM5_INLINE static __m256i low_half(u8s x) { return _mm512_castsi512_si256((__m512i)x); }
  GLM5_INLINE static __m256i high_half(u8s x) { return _mm512_extracti64x4_epi64((__m512i)x, 1); }
  GLM5_INLINE static __m512i pair(__m256i low, __m256i high) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
  }
  GLM5_INLINE static __m128i join(u32s codes, u32s x) {
    // 0xca: bits of the second where the first has ones, else of the third.
    return _mm512_cvtepi32_epi8(
        _mm512_ternarylogic_epi32(_mm512_set1_epi32(0x80), (__m512i)(x >> 24), (__m512i)codes, 0xca));
  }
};

}  // namespace glm5::avx512
