#include "wgmma_math.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace glm5::emulator {

MatrixDescriptor decode_descriptor(u64 bits) {
  constexpr Swizzle kModes[] = {Swizzle::none, Swizzle::bytes_128, Swizzle::bytes_64, Swizzle::bytes_32};
  return {.start = static_cast<u32>(bits & 0x3fff) << 4,
          .leading = static_cast<u32>(bits >> 16 & 0x3fff) << 4,
          .stride = static_cast<u32>(bits >> 32 & 0x3fff) << 4,
          .base_offset = static_cast<u32>(bits >> 49 & 7),
          .swizzle = kModes[bits >> 62]};
}

std::vector<u32> chunk_addresses(const MatrixDescriptor& d, bool mn_major, int first, int rows) {
  std::vector<u32> addresses;
  addresses.resize(static_cast<size_t>(rows) * 2);
  u32* next = addresses.data();
  const u32 span = span_of(d.swizzle);
  const auto put = [&](u32 offset) {
    *next++ = static_cast<u32>(swizzled((d.start + offset) & 0x3ffff, d.swizzle));
  };
  if (!mn_major) {
    const u32 line = d.swizzle == Swizzle::none ? 16 : span, half = d.swizzle == Swizzle::none ? d.leading : 16;
    for (u32 r = first; r < static_cast<u32>(first + rows); ++r) {
      for (u32 c = 0; c < 2; ++c) put(r / 8 * d.stride + r % 8 * line + c * half);
    }
    return addresses;
  }
  for (u32 k = 0; k < 16; ++k) {
    for (u32 i = first / 8; i < static_cast<u32>(first + rows) / 8; ++i) {
      if (d.swizzle == Swizzle::none) {
        put(i * d.stride + k % 8 * 16 + k / 8 * d.leading);
      } else {
        put(i % (span / 16) * 16 + i / (span / 16) * d.leading + k % 8 * span + k / 8 * d.stride);
      }
    }
  }
  return addresses;
}

void rows_from_chunks(const u8* chunks, bool mn_major, int rows, u8* out) {
  if (!mn_major) {
    std::memcpy(out, chunks, static_cast<size_t>(rows) * kWgmmaKBytes);
    return;
  }
  const int groups = rows / 8;
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < groups; ++i) {
      const u8* chunk = chunks + (k * groups + i) * 16;
      for (int j = 0; j < 8; ++j) std::memcpy(out + (i * 8 + j) * kWgmmaKBytes + k * 2, chunk + j * 2, 2);
    }
  }
}

namespace {

// Each half of a 64-bit word, masked by a key that changes from step to step, is multiplied by the other.
__m256i mix(__m256i sum, __m256i& key, const u8* bytes) {
  const __m256i word = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)),
                masked = _mm256_xor_si256(word, key);
  key = _mm256_add_epi64(key, _mm256_set1_epi64x(0x7c159e3779b97f4b));
  const __m256i product = _mm256_mul_epu32(masked, _mm256_srli_epi64(masked, 32));
  return _mm256_add_epi64(_mm256_add_epi64(sum, product), _mm256_shuffle_epi32(masked, 0xb1));
}

u64 fold(__m256i sum, u64 seed) {
  alignas(32) u64 lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
  u64 result = seed;
  for (const u64 lane : lanes) result = (result ^ lane ^ lane >> 32) * 0x9e3779b97f4a7c15;
  return result;
}

const __m256i kFirstKey =
    _mm256_set_epi64x(0x452821e638d01377, 0x13198a2e03707344, 0x243f6a8885a308d3, 0x3f84d5b5b5470917);

}  // namespace

u64 hash_bytes(const u8* bytes, size_t count) {
  __m256i sum = _mm256_setzero_si256(), key = kFirstKey;
  size_t i = 0;
  for (; i + 32 <= count; i += 32) sum = mix(sum, key, bytes + i);
  u8 rest[32] = {};
  std::memcpy(rest, bytes + i, count - i);
  return fold(mix(sum, key, rest), count);
}

RowHash::RowHash() : sum_(_mm256_setzero_si256()), key_(kFirstKey) {}

void RowHash::add(const u8* row) {
  for (int i = 0; i < 128; i += 32) sum_ = mix(sum_, key_, row + i);
}

u64 RowHash::value() const { return fold(sum_, 0); }

f32 f16_to_f32(u16 bits) { return _cvtsh_ss(bits); }
u16 f32_to_f16(f32 value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

namespace {

// Eight elements, widened to f32 or i32. Input: 8, 16 or 32 bytes.
template <MatrixElement kElement>
__m256i widen_8(const u8* from) {
  const auto load_8 = [&] { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); };
  const auto load_16 = [&] { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  if constexpr (kElement == MatrixElement::f16) return _mm256_castps_si256(_mm256_cvtph_ps(load_16()));
  if constexpr (kElement == MatrixElement::bf16) return _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16()), 16);
  if constexpr (kElement == MatrixElement::tf32) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm256_and_si256(bits, _mm256_set1_epi32(~0x1fff));
  }
  if constexpr (kElement == MatrixElement::e5m2) {  // the upper byte of an f16
    return _mm256_castps_si256(_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(load_8()), 8)));
  }
  if constexpr (kElement == MatrixElement::s8) return _mm256_cvtepi8_epi32(load_8());
  if constexpr (kElement == MatrixElement::u8_) return _mm256_cvtepu8_epi32(load_8());
  if constexpr (kElement == MatrixElement::e4m3) {
    // Exponent and mantissa moved to f32's place are off by 2^120, subnormals included; 0x7f is the only NaN.
    const __m256i wide = _mm256_cvtepu8_epi32(load_8());
    const __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
    const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(wide, _mm256_set1_epi32(0x80)), 24);
    const __m256 scaled =
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
    const __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    const __m256i value = _mm256_blendv_epi8(_mm256_castps_si256(scaled), _mm256_set1_epi32(0x7fc00000), is_nan);
    return _mm256_or_si256(value, sign);
  }
}

// Pairs of elements of `kSize` bytes, from a and b in turn: the lower and the upper half of the result.
template <int kSize>
void interleave(__m128i a, __m128i b, __m128i& lower, __m128i& upper) {
  if constexpr (kSize == 1) lower = _mm_unpacklo_epi8(a, b), upper = _mm_unpackhi_epi8(a, b);
  if constexpr (kSize == 2) lower = _mm_unpacklo_epi16(a, b), upper = _mm_unpackhi_epi16(a, b);
  if constexpr (kSize == 4) lower = _mm_unpacklo_epi32(a, b), upper = _mm_unpackhi_epi32(a, b);
  if constexpr (kSize == 8) lower = _mm_unpacklo_epi64(a, b), upper = _mm_unpackhi_epi64(a, b);
}

// Four columns, every second one, of 16 bytes of k each -> [k][4 columns].
template <int kSize>
void mix_columns(const u8* first, u8* mixed) {
  __m128i column[4], low[2], high[2], out[4];
  for (int j = 0; j < 4; ++j) {
    column[j] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + j * 2 * kWgmmaKBytes));
  }
  interleave<kSize>(column[0], column[1], low[0], high[0]);
  interleave<kSize>(column[2], column[3], low[1], high[1]);
  interleave<2 * kSize>(low[0], low[1], out[0], out[1]);
  interleave<2 * kSize>(high[0], high[1], out[2], out[3]);
  for (int i = 0; i < 4; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(mixed + 16 * i), out[i]);
}

template <MatrixElement kElement>
void pack_b_as(int n, const u8* rows, f32* out) {
  constexpr int kSize = element_bytes(kElement);
  alignas(32) u8 mixed[4 * kWgmmaKBytes];  // [k][4 columns]
  for (int g = 0; g < n / 8; ++g) {
    for (int parity = 0; parity < 2; ++parity) {
      const u8* first = rows + (8 * g + parity) * kWgmmaKBytes;
      mix_columns<kSize>(first, mixed);
      mix_columns<kSize>(first + 16, mixed + 64);
      for (int i = 0; i < k_of(kElement) * 4; i += 8, out += 8) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), widen_8<kElement>(mixed + i * kSize));
      }
    }
  }
}

template <MatrixElement kElement>
void pack_a_as(const u8* rows, bool negate, f32* values) {
  constexpr int kSize = element_bytes(kElement), kCount = k_of(kElement);
  alignas(32) f32 wide[16][kWgmmaKBytes];
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < kCount; k += 8) {
      const __m256i eight = widen_8<kElement>(rows + r * kWgmmaKBytes + k * kSize);
      _mm256_store_si256(reinterpret_cast<__m256i*>(&wide[r][k]), eight);
    }
  }
  const __m128 sign = _mm_set1_ps(negate ? -0.0f : 0.0f);
  for (int k = 0; k < kCount; ++k) {
    for (int r = 0; r < 16; ++r) _mm_storeu_ps(values + k * 64 + r * 4, _mm_xor_ps(_mm_set1_ps(wide[r][k]), sign));
  }
}

// f<kElement>() for a value known at run time.
template <class F>
void with_element(MatrixElement element, F f) {
  using enum MatrixElement;
  switch (element) {
    case f16:
      return f.template operator()<f16>();
    case bf16:
      return f.template operator()<bf16>();
    case tf32:
      return f.template operator()<tf32>();
    case e4m3:
      return f.template operator()<e4m3>();
    case e5m2:
      return f.template operator()<e5m2>();
    case s8:
      return f.template operator()<s8>();
    case u8_:
      return f.template operator()<u8_>();
  }
}

}  // namespace

void pack_b(MatrixElement element, int n, const u8* rows, std::vector<f32>& values) {
  values.resize(static_cast<size_t>(n) * k_of(element));
  with_element(element, [&]<MatrixElement kElement> { pack_b_as<kElement>(n, rows, values.data()); });
}

void pack_a(MatrixElement element, const u8* rows, bool negate, f32* values) {
  with_element(element, [&]<MatrixElement kElement> { pack_a_as<kElement>(rows, negate, values); });
}

const f32* OperandCache::find(u64 key, MatrixElement element, int n, const std::vector<u8>& rows) {
  Entry& entry = entries_[(key ^ key >> 5 ^ key >> 9) % kEntries];
  if (entry.key == key && entry.element == element && entry.n == n && entry.packed.raw == rows) {
    return entry.packed.values.data();
  }
  entry.key = key;
  entry.element = element;
  entry.n = n;
  entry.packed.raw = rows;
  pack_b(element, n, rows.data(), entry.packed.values);
  return entry.packed.values.data();
}

void multiply_f32(const f32* a, const f32* b, int k_count, int n, f32* const* registers, bool accumulate) {
  // One pair of registers: 8 columns of one parity, for rows l / 4 and l / 4 + 8. Four vectors of 8 lanes each.
  for (int g = 0; g < n / 8; ++g) {
    for (int parity = 0; parity < 2; ++parity, b += 4 * k_count) {
      f32 *upper = registers[4 * g + parity], *lower = registers[4 * g + 2 + parity];
      __m256 sum[8];
      for (int j = 0; j < 4; ++j) {
        sum[j] = accumulate ? _mm256_loadu_ps(upper + 8 * j) : _mm256_setzero_ps();
        sum[4 + j] = accumulate ? _mm256_loadu_ps(lower + 8 * j) : _mm256_setzero_ps();
      }
      for (int k = 0; k < k_count; ++k) {
        const __m256 columns = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(b + 4 * k));
        const f32* row = a + 64 * k;
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sum[j] = _mm256_fmadd_ps(_mm256_loadu_ps(row + 8 * j), columns, sum[j]);
      }
      for (int j = 0; j < 4; ++j) {
        _mm256_storeu_ps(upper + 8 * j, sum[j]);
        _mm256_storeu_ps(lower + 8 * j, sum[4 + j]);
      }
    }
  }
}

void multiply_i32(const f32* a, const f32* b, int k_count, int n, i32* const* registers, bool accumulate,
                  bool saturate) {
  const auto bits = [](f32 value) { return i64{__builtin_bit_cast(i32, value)}; };
  for (int i = 0; i < n / 2; ++i) {
    const f32* columns = b + static_cast<size_t>(i / 4 * 2 + i % 2) * 4 * k_count;
    for (int lane = 0; lane < 32; ++lane) {
      i64 sum = accumulate ? registers[i][lane] : 0;
      for (int k = 0; k < k_count; ++k)
        sum += bits(a[64 * k + 32 * (i / 2 % 2) + lane]) * bits(columns[4 * k + lane % 4]);
      if (saturate) sum = std::clamp<i64>(sum, INT32_MIN, INT32_MAX);
      registers[i][lane] = static_cast<i32>(sum);
    }
  }
}

}  // namespace glm5::emulator
