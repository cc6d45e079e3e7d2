// mla_cache_append on the CPU: one token after the other.
#pragma once

#include "cpu/cache_rows.h"
#include "cpu/float_environment.h"
#include "ops/mla_cache_append/mla_cache_append.h"

namespace glm5::mla_cache {

GLM5_INLINE f32 as_stored(f32 value, const f32*) { return value; }
GLM5_INLINE f32 as_stored(f32 value, const bf16*) { return to_f32(to_bf16(value)); }

template <class T>
GLM5_INLINE void normalise(f32 (&latent)[kMlaLatent], const f32 (&weight)[kMlaLatent], f32 eps) {
  alignas(64) f32 square[kMlaLatent];
  for (i64 i = 0; i < kMlaLatent; ++i) square[i] = latent[i] * latent[i];
  const f32 inverse = 1.0f / __builtin_sqrtf(cpu::sum_in_chains<kMlaChains>(square) / kMlaLatent + eps);
  for (i64 i = 0; i < kMlaLatent; ++i)
    latent[i] = as_stored(latent[i] * inverse, static_cast<const T*>(nullptr)) * weight[i];
}

GLM5_INLINE void store_bytes(f32 (&latent)[kMlaLatent], const bf16 (&key)[kMlaDim], bool power_of_two, u8* token) {
  cpu::load_row(key, kMlaLatent, latent);
  f32 scales[kMlaGroups];
  for (i64 g = 0; g < kMlaGroups; ++g)
    scales[g] = cpu::quantize_group(latent + g * kFp8Group, kCacheAmaxFloor, power_of_two, token + g * kFp8Group);
  __builtin_memcpy(token + kMlaScalesAt, scales, sizeof(scales));
  __builtin_memcpy(token + kMlaRopeAt, key + kMlaLatent, 2 * kMlaRope);
}

template <class T, class Weight>
GLM5_INLINE void append_tokens(const MlaCacheAppendArgs& args, i64 begin, i64 end) {
  const auto kv = args.kv.as<const T>();
  alignas(64) f32 weight[kMlaLatent], latent[kMlaLatent], rope[kMlaRope];
  alignas(64) bf16 key[kMlaDim];
  cpu::load_row(args.norm_weight.as<const Weight>().data, kMlaLatent, weight);
  for (i64 t = begin; t < end; ++t) {
    const i64 slot = *args.cache_slots.at(t);
    if (slot < 0) continue;
    cpu::load_row(kv.at(t, 0), kMlaLatent, latent);
    cpu::load_row(kv.at(t, kMlaLatent), kMlaRope, rope);
    normalise<T>(latent, weight, args.eps);
    cpu::rotate_pairs<kMlaRope / 2>(rope, args.cos_sin.at(*args.positions.at(t), 0, 0));
    for (i64 i = 0; i < kMlaLatent; ++i) key[i] = to_bf16(latent[i]);
    for (i64 i = 0; i < kMlaRope; ++i) key[kMlaLatent + i] = to_bf16(rope[i]);
    if (args.cache.bytes.exists())
      store_bytes(latent, key, args.power_of_two, args.cache.bytes_of(slot));
    else
      __builtin_memcpy(args.cache.values_of(slot), key, sizeof(key));
  }
}

GLM5_INLINE void append(const MlaCacheAppendArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const bool wide = args.kv.dtype == Float::f32, wide_weight = args.norm_weight.dtype == Float::f32;
  if (wide && wide_weight) append_tokens<f32, f32>(args, begin, end);
  if (wide && !wide_weight) append_tokens<f32, bf16>(args, begin, end);
  if (!wide && wide_weight) append_tokens<bf16, f32>(args, begin, end);
  if (!wide && !wide_weight) append_tokens<bf16, bf16>(args, begin, end);
  cpu::restore_floats(before);
}

}  // namespace glm5::mla_cache
