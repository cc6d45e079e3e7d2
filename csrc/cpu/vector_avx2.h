// cpu/vector.h on AVX2 (with FMA and F16C).
#pragma once

#include <immintrin.h>

#include "cpu/avx2.h"
#include "cpu/vector.h"

namespace glm5::avx2 {

// What no vector's width matters for.
struct Narrow {
  GLM5_INLINE static f32 scalar_f32(f32 x) { return x; }
  GLM5_INLINE static f32 scalar_f32(bf16 x) { return to_f32(x); }
  GLM5_INLINE static f32 scalar_f32(f16 x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x.bits))); }

  // bf16(16 numbers * scale) - subtrahends, none of them NaN: 16 low bytes, then 16 high ones.
  GLM5_INLINE static void split_bf16(const f32* numbers, f32 scale, const u16* subtrahends, u8* bytes_of_16) {
    const __m256i left = rounded(_mm256_mul_ps(_mm256_load_ps(numbers), _mm256_set1_ps(scale)));
    const __m256i right = rounded(_mm256_mul_ps(_mm256_load_ps(numbers + 8), _mm256_set1_ps(scale)));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(left, right), 0xd8);
    const __m256i words = _mm256_sub_epi16(packed, _mm256_load_si256(reinterpret_cast<const __m256i*>(subtrahends)));
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(words, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes_of_16), _mm256_permute4x64_epi64(bytes, 0xd8));
  }

 private:
  GLM5_INLINE static __m256i rounded(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  }
};

struct Vector : cpu::VectorTypes<32>, Narrow {
  GLM5_INLINE static u8s load(const void* from) { return (u8s)_mm256_loadu_si256(static_cast<const __m256i*>(from)); }
  GLM5_INLINE static void store(void* to, u8s x) { _mm256_storeu_si256(static_cast<__m256i*>(to), (__m256i)x); }
  // Past the caches, to a multiple of kBytes; fence() comes before other threads may look.
  GLM5_INLINE static void stream(void* to, u8s x) { _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)x); }
  GLM5_INLINE static void fence() { _mm_sfence(); }

  // The same 16 bytes in every lane.
  GLM5_INLINE static u8s repeat_16(const void* from) {
    return (u8s)_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
  }
  // Lanes from, and to, places that are `step` bytes apart.
  GLM5_INLINE static u8s load_lanes(const void* from, i64 step) {
    const char* bytes = static_cast<const char*>(from);
    return (u8s)_mm256_set_m128i(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + step)),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  }
  GLM5_INLINE static void store_lanes(void* to, i64 step, u8s x) {
    char* bytes = static_cast<char*>(to);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm256_castsi256_si128((__m256i)x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + step), _mm256_extracti128_si256((__m256i)x, 1));
  }

  // Within lanes: bytes chosen by the low four bits of an index below 128.
  GLM5_INLINE static u8s choose(u8s lane, u8s index) { return (u8s)_mm256_shuffle_epi8((__m256i)lane, (__m256i)index); }
  // Within lanes: elements of kSize bytes, of a and of b in turn, from the low or the high halves of the lanes.
  template <int kSize>
  GLM5_INLINE static u8s interleave_low(u8s a, u8s b) {
    if constexpr (kSize == 1) return (u8s)_mm256_unpacklo_epi8((__m256i)a, (__m256i)b);
    if constexpr (kSize == 2) return (u8s)_mm256_unpacklo_epi16((__m256i)a, (__m256i)b);
    if constexpr (kSize == 4) return (u8s)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b);
    if constexpr (kSize == 8) return (u8s)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
  }
  template <int kSize>
  GLM5_INLINE static u8s interleave_high(u8s a, u8s b) {
    if constexpr (kSize == 1) return (u8s)_mm256_unpackhi_epi8((__m256i)a, (__m256i)b);
    if constexpr (kSize == 2) return (u8s)_mm256_unpackhi_epi16((__m256i)a, (__m256i)b);
    if constexpr (kSize == 4) return (u8s)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b);
    if constexpr (kSize == 8) return (u8s)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
  }
  // Lanes' low halves, then their high halves; and back.
  GLM5_INLINE static u8s low_halves_first(u8s x) { return (u8s)_mm256_permute4x64_epi64((__m256i)x, 0xd8); }
  GLM5_INLINE static u8s halves_to_lanes(u8s x) { return low_halves_first(x); }
  // Lane i becomes lane i + `lanes`, the last ones the first.
  GLM5_INLINE static u8s rotate_lanes(u8s x, i64) { return (u8s)_mm256_permute4x64_epi64((__m256i)x, 0x4e); }
  // Within lanes: bytes with the signs of a's words, then of b's.
  GLM5_INLINE static u8s pack_signs(u16s a, u16s b) { return (u8s)_mm256_packs_epi16((__m256i)a, (__m256i)b); }

  // a where the mask has ones, b where it has zeros.
  GLM5_INLINE static u8s select(u8s mask, u8s a, u8s b) {
    return (u8s)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)mask);
  }
  // a - b, or 0 where that is negative.
  GLM5_INLINE static u8s reduce(u8s a, u8s b) { return (u8s)_mm256_subs_epu8((__m256i)a, (__m256i)b); }
  GLM5_INLINE static u16s reduce(u16s a, u16s b) { return (u16s)_mm256_subs_epu16((__m256i)a, (__m256i)b); }
  GLM5_INLINE static bool any(u8s x) { return !_mm256_testz_si256((__m256i)x, (__m256i)x); }

  GLM5_INLINE static f32s multiply_add(f32s a, f32s b, f32s c) { return _mm256_fmadd_ps(a, b, c); }          // a b + c
  GLM5_INLINE static f32s negate_multiply_add(f32s a, f32s b, f32s c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b

  GLM5_INLINE static f32s load_f32(const f32* x) { return load_f32x8(x); }
  GLM5_INLINE static f32s load_f32(const bf16* x) { return load_f32x8(x); }
  GLM5_INLINE static f32s load_f32(const f16* x) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  // value / 256; what the NaN of e4m3 becomes is 1.875.
  GLM5_INLINE static f32s load_f32(const e4m3* values) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
    const __m128i words = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(f16_of_e4m3(_mm256_castsi128_si256(words))));
  }
  GLM5_INLINE static void store_f32(f32* to, f32s x) { store_f32x8(to, x); }
  GLM5_INLINE static void store_f32(bf16* to, f32s x) { store_f32x8(to, x); }
  GLM5_INLINE static void store_f32(f16* to, f32s x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }

  // Bytes in order: the low seven bits of codes (whose high halves are of no meaning) with the signs of x.
  GLM5_INLINE static u8s join(const u32s (&codes)[4], const u32s (&x)[4]) {
    const __m256i magnitudes = _mm256_packus_epi16(_mm256_packus_epi32(low_word(codes[0]), low_word(codes[1])),
                                                   _mm256_packus_epi32(low_word(codes[2]), low_word(codes[3])));
    const __m256i signs = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]),
                                             _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]));
    const __m256i bytes = _mm256_or_si256(magnitudes, _mm256_and_si256(signs, _mm256_set1_epi8(-128)));
    return (u8s)_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  }

 private:
  GLM5_INLINE static __m256i low_word(u32s x) { return _mm256_blend_epi16((__m256i)x, _mm256_setzero_si256(), 0xaa); }
};

}  // namespace glm5::avx2
