// indexer_cache_append on the CPU: one token after the other, as loops over 128 values that the compiler turns into
// vectors of whatever instruction set it compiles for. There is no sum to reorder but the header's chains.
#pragma once

#include "cpu/cache_rows.h"
#include "cpu/float_environment.h"
#include "ops/indexer_cache_append/indexer_cache_append.h"

namespace glm5::indexer_cache {

GLM5_INLINE f32 sum_of(const f32 (&x)[kIndexDim]) { return cpu::sum_in_chains<32>(x); }

GLM5_INLINE void normalise(f32 (&x)[kIndexDim], const f32 (&weight)[kIndexDim], const f32 (&bias)[kIndexDim], f32 eps) {
  alignas(64) f32 square[kIndexDim];
  const f32 mean = sum_of(x) / kIndexDim;
  for (i64 i = 0; i < kIndexDim; ++i) x[i] -= mean;
  for (i64 i = 0; i < kIndexDim; ++i) square[i] = x[i] * x[i];
  const f32 inverse = 1.0f / __builtin_sqrtf(sum_of(square) / kIndexDim + eps);
  for (i64 i = 0; i < kIndexDim; ++i) x[i] = x[i] * inverse * weight[i] + bias[i];
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

GLM5_INLINE void store_bytes(const f32 (&x)[kIndexDim], const IndexerCacheAppendArgs& args, i64 page, i64 row) {
  u8* values = args.byte_cache.at(page, row * kIndexDim);
  const f32 scale = cpu::quantize_group(x, kCacheAmaxFloor, args.power_of_two, values);
  __builtin_memcpy(args.byte_cache.at(page, kPage * kIndexDim + row * 4), &scale, 4);
}

template <class T, class Weight>
GLM5_INLINE void append_tokens(const IndexerCacheAppendArgs& args, i64 begin, i64 end) {
  const auto k = args.k.as<const T>();
  alignas(64) f32 weight[kIndexDim], bias[kIndexDim], x[kIndexDim];
  alignas(64) bf16 key[kIndexDim];
  cpu::load_row(args.norm_weight.as<const Weight>().data, kIndexDim, weight);
  cpu::load_row(args.norm_bias.as<const Weight>().data, kIndexDim, bias);
  for (i64 t = begin; t < end; ++t) {
    const i64 slot = *args.cache_slots.at(t);
    if (slot < 0) continue;
    cpu::load_row(k.at(t, 0), kIndexDim, x);
    normalise(x, weight, bias, args.eps);
    cpu::rotate_pairs<kIndexRopePairs>(x, args.cos_sin.at(*args.positions.at(t), 0, 0));
    if (args.hadamard) mix(x);
    for (i64 i = 0; i < kIndexDim; ++i) key[i] = to_bf16(x[i]);
    if (args.bf16_cache.exists()) {
      __builtin_memcpy(args.bf16_cache.at(slot / kPage, slot % kPage, 0), key, sizeof(key));
    } else {
      cpu::load_row(key, kIndexDim, x);
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
