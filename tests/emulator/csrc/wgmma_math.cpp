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
  addresses.reserve(rows * 2);
  const u32 span = span_of(d.swizzle);
  const auto put = [&](u32 offset) {
    addresses.push_back(static_cast<u32>(swizzled((d.start + offset) & 0x3ffff, d.swizzle)));
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

constexpr u64 kPrime = 0x9e3779b97f4a7c15;

void mix(u64 (&lanes)[4], const u8* bytes) {
  for (int j = 0; j < 4; ++j) {
    u64 word;
    std::memcpy(&word, bytes + 8 * j, 8);
    lanes[j] = (lanes[j] ^ word) * kPrime;
    lanes[j] ^= lanes[j] >> 29;
  }
}

u64 fold(const u64 (&lanes)[4]) {
  u64 result = 0;
  for (const u64 lane : lanes) result = (result ^ lane ^ (lane >> 32)) * kPrime;
  return result;
}

}  // namespace

u64 hash_bytes(const u8* bytes, size_t count) {
  u64 lanes[4] = {1, 2, 3, 4};
  size_t i = 0;
  for (; i + 32 <= count; i += 32) mix(lanes, bytes + i);
  for (; i < count; ++i) lanes[0] = (lanes[0] ^ bytes[i]) * kPrime;
  return fold(lanes);
}

void RowHash::add(const u8* row) {
  for (int i = 0; i < 128; i += 32) mix(lanes_, row + i);
}

u64 RowHash::value() const { return fold(lanes_); }

f32 f16_to_f32(u16 bits) { return _cvtsh_ss(bits); }
u16 f32_to_f16(f32 value) { return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT); }

namespace {

// Eight elements, widened to f32 or i32. Input: 8, 16 or 32 bytes.
__m256i widen_8(MatrixElement element, const u8* from) {
  const auto load_8 = [&] { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); };
  const auto load_16 = [&] { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
  switch (element) {
    case MatrixElement::f16:
      return _mm256_castps_si256(_mm256_cvtph_ps(load_16()));
    case MatrixElement::bf16:
      return _mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16()), 16);
    case MatrixElement::tf32:
      return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), _mm256_set1_epi32(~0x1fff));
    case MatrixElement::e5m2:  // the upper byte of an f16
      return _mm256_castps_si256(_mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(load_8()), 8)));
    case MatrixElement::s8:
      return _mm256_cvtepi8_epi32(load_8());
    case MatrixElement::u8_:
      return _mm256_cvtepu8_epi32(load_8());
    case MatrixElement::e4m3:
      break;
  }
  // e4m3: exponent and mantissa moved to f32's place are off by 2^120, subnormals included; 0x7f is the only NaN.
  const __m256i wide = _mm256_cvtepu8_epi32(load_8());
  const __m256i magnitude = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
  const __m256i sign = _mm256_slli_epi32(_mm256_and_si256(wide, _mm256_set1_epi32(0x80)), 24);
  const __m256 scaled = _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(magnitude, 20)), _mm256_set1_ps(0x1p120f));
  const __m256i is_nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
  const __m256i value = _mm256_blendv_epi8(_mm256_castps_si256(scaled), _mm256_set1_epi32(0x7fc00000), is_nan);
  return _mm256_or_si256(value, sign);
}

}  // namespace

void pack_b(MatrixElement element, int n, const u8* rows, std::vector<f32>& values) {
  const int size = element_bytes(element), k_count = k_of(element);
  values.resize(static_cast<size_t>(n) * k_count);
  f32* out = values.data();
  alignas(32) u8 mixed[4 * kWgmmaKBytes];  // [k][4 columns]
  for (int g = 0; g < n / 8; ++g) {
    for (int parity = 0; parity < 2; ++parity) {
      const u8* columns[4];
      for (int j = 0; j < 4; ++j) columns[j] = rows + (8 * g + parity + 2 * j) * kWgmmaKBytes;
      if (size == 1) {
        for (int k = 0; k < k_count; ++k) {
          for (int j = 0; j < 4; ++j) mixed[k * 4 + j] = columns[j][k];
        }
      } else {
        for (int k = 0; k < k_count; ++k) {
          for (int j = 0; j < 4; ++j) std::memcpy(mixed + (k * 4 + j) * size, columns[j] + k * size, size);
        }
      }
      for (int i = 0; i < k_count * 4; i += 8, out += 8) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), widen_8(element, mixed + i * size));
      }
    }
  }
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

void pack_a(MatrixElement element, const u8* rows, bool negate, f32* values) {
  const int size = element_bytes(element), k_count = k_of(element);
  alignas(32) f32 wide[16][kWgmmaKBytes];
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < k_count; k += 8) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(&wide[r][k]), widen_8(element, rows + r * kWgmmaKBytes + k * size));
    }
  }
  const __m128 sign = _mm_set1_ps(negate ? -0.0f : 0.0f);
  for (int k = 0; k < k_count; ++k) {
    for (int r = 0; r < 16; ++r) _mm_storeu_ps(values + k * 64 + r * 4, _mm_xor_ps(_mm_set1_ps(wide[r][k]), sign));
  }
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
