// indexer_cache_append on the CPU: one token after the other, as loops over 128 values that the compiler turns into
// vectors of whatever instruction set it compiles for. There is no sum to reorder but the header's chains.
#pragma once

#include "cpu/float_environment.h"
#include "ops/indexer_cache_append/indexer_cache_append.h"

namespace glm5::indexer_cache {

constexpr i64 kChains = 32;

GLM5_INLINE f32 sum_of_chains(f32 (&chain)[kChains]) {
  for (i64 half = kChains / 2; half >= 1; half /= 2)
    for (i64 j = 0; j < half; ++j) chain[j] += chain[j + half];
  return chain[0];
}

GLM5_INLINE f32 sum_of(const f32 (&x)[kIndexDim]) {
  alignas(64) f32 chain[kChains];
  for (i64 j = 0; j < kChains; ++j) chain[j] = x[j];
  for (i64 i = kChains; i < kIndexDim; i += kChains)
    for (i64 j = 0; j < kChains; ++j) chain[j] += x[i + j];
  return sum_of_chains(chain);
}

template <class T>
GLM5_INLINE void load(const T* from, f32 (&x)[kIndexDim]) {
  for (i64 i = 0; i < kIndexDim; ++i) x[i] = to_f32(from[i]);
}

GLM5_INLINE void normalise(f32 (&x)[kIndexDim], const f32 (&weight)[kIndexDim], const f32 (&bias)[kIndexDim], f32 eps) {
  alignas(64) f32 square[kIndexDim];
  const f32 mean = sum_of(x) / kIndexDim;
  for (i64 i = 0; i < kIndexDim; ++i) x[i] -= mean;
  for (i64 i = 0; i < kIndexDim; ++i) square[i] = x[i] * x[i];
  const f32 inverse = 1.0f / __builtin_sqrtf(sum_of(square) / kIndexDim + eps);
  for (i64 i = 0; i < kIndexDim; ++i) x[i] = x[i] * inverse * weight[i] + bias[i];
}

// Products first, sums in a loop of their own: from one expression with both signs gcc 12 makes a fused multiply-add even
// where contraction is off.
GLM5_INLINE void rotate(f32 (&x)[kIndexDim], const f32* cos_sin) {
  alignas(64) f32 own[2 * kIndexRopePairs], crossed[2 * kIndexRopePairs];
  for (i64 i = 0; i < kIndexRopePairs; ++i) {
    const f32 cosine = cos_sin[2 * i], sine = cos_sin[2 * i + 1];
    own[2 * i] = x[2 * i] * cosine;
    own[2 * i + 1] = x[2 * i + 1] * cosine;
    crossed[2 * i] = x[2 * i + 1] * -sine;
    crossed[2 * i + 1] = x[2 * i] * sine;
  }
  for (i64 i = 0; i < 2 * kIndexRopePairs; ++i) x[i] = own[i] + crossed[i];
}

GLM5_INLINE void mix(f32 (&x)[kIndexDim]) {
#pragma GCC unroll 7
  for (i64 distance = 1; distance < kIndexDim; distance *= 2) {
    for (i64 first = 0; first < kIndexDim; first += 2 * distance) {
      for (i64 i = first; i < first + distance; ++i) {
        const f32 left = x[i], right = x[i + distance];
        x[i] = left + right;
        x[i + distance] = left - right;
      }
    }
  }
  for (i64 i = 0; i < kIndexDim; ++i) x[i] *= 0.08838834764831845f;  // 128^-1/2
}

// The e4m3 of a quotient of at most 448, without a branch: |q| + 2^(e + 20) has its last bit at the step of e4m3 there,
// so its low bits count steps. (avx2.cpp of quantize_fp8 has the whole argument.)
GLM5_INLINE u8 e4m3_of(f32 quotient) {
  const u32 magnitude = bits_of(quotient) & 0x7fffffff, sign = (bits_of(quotient) >> 24) & 0x80;
  const u32 power = magnitude & 0x7f800000;
  const u32 adder = (power < (121u << 23) ? 121u << 23 : power) + (20u << 23) + 65536 - 1128;
  const u32 code = (bits_of(f32_of_bits(magnitude) + f32_of_bits(adder)) + (adder >> 20)) & 0xff;
  return static_cast<u8>(magnitude < 0x7f800000 ? code | sign : kE4m3Nan);
}

GLM5_INLINE void store_bytes(const f32 (&x)[kIndexDim], const IndexerCacheAppendArgs& args, i64 page, i64 row) {
  u32 amax = 0;  // finite magnitudes order as their bits do
  for (i64 i = 0; i < kIndexDim; ++i) {
    const u32 magnitude = bits_of(x[i]) & 0x7fffffff, finite = magnitude < 0x7f800000 ? magnitude : 0;
    amax = finite > amax ? finite : amax;
  }
  const f32 scale = fp8_scale(f32_of_bits(amax), kIndexAmaxFloor, args.power_of_two);
  alignas(64) u8 values[kIndexDim];
  for (i64 i = 0; i < kIndexDim; ++i) values[i] = e4m3_of(x[i] / scale);
  __builtin_memcpy(args.byte_cache.at(page, row * kIndexDim), values, kIndexDim);
  __builtin_memcpy(args.byte_cache.at(page, kPage * kIndexDim + row * 4), &scale, 4);
}

template <class T, class Weight>
GLM5_INLINE void append_tokens(const IndexerCacheAppendArgs& args, i64 begin, i64 end) {
  const auto k = args.k.as<const T>();
  alignas(64) f32 weight[kIndexDim], bias[kIndexDim], x[kIndexDim];
  alignas(64) bf16 key[kIndexDim];
  load(args.norm_weight.as<const Weight>().data, weight);
  load(args.norm_bias.as<const Weight>().data, bias);
  for (i64 t = begin; t < end; ++t) {
    const i64 slot = *args.cache_slots.at(t);
    if (slot < 0) continue;
    load(k.at(t, 0), x);
    normalise(x, weight, bias, args.eps);
    rotate(x, args.cos_sin.at(*args.positions.at(t), 0, 0));
    if (args.hadamard) mix(x);
    for (i64 i = 0; i < kIndexDim; ++i) key[i] = to_bf16(x[i]);
    if (args.bf16_cache.exists()) {
      __builtin_memcpy(args.bf16_cache.at(slot / kPage, slot % kPage, 0), key, sizeof(key));
    } else {
      load(key, x);
      store_bytes(x, args, slot / kPage, slot % kPage);
    }
  }
}

GLM5_INLINE void append(const IndexerCacheAppendArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const bool wide = args.k.dtype == Float::f32, wide_weight = args.norm_weight.dtype == Float::f32;
  if (wide && wide_weight) append_tokens<f32, f32>(args, begin, end);
  if (wide && !wide_weight) append_tokens<f32, bf16>(args, begin, end);
  if (!wide && wide_weight) append_tokens<bf16, f32>(args, begin, end);
  if (!wide && !wide_weight) append_tokens<bf16, bf16>(args, begin, end);
  cpu::restore_floats(before);
}

}  // namespace glm5::indexer_cache
