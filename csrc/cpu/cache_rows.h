// What the CPU kernels that fill and read a cache share: the steps from a projected row to a stored one and back, as
// loops over a fixed count that the compiler turns into vectors of whatever instruction set it compiles for.
#pragma once

#include "core/fp8.h"
#include "core/mla_cache.h"
#include "cpu/fp8_group.h"

namespace glm5::cpu {

// Fold a sum's chains: chain j += chain j + Chains/2, and so on with halves of that.
template <i64 Chains>
GLM5_INLINE f32 sum_of_chains(f32 (&chain)[Chains]) {
  for (i64 half = Chains / 2; half >= 1; half /= 2)
    for (i64 j = 0; j < half; ++j) chain[j] += chain[j + half];
  return chain[0];
}

// The sum of Count values in Chains chains: chain j over the values j, j + Chains, ...
template <i64 Chains, i64 Count>
GLM5_INLINE f32 sum_in_chains(const f32 (&x)[Count]) {
  alignas(64) f32 chain[Chains];
  for (i64 j = 0; j < Chains; ++j) chain[j] = x[j];
  for (i64 i = Chains; i < Count; i += Chains)
    for (i64 j = 0; j < Chains; ++j) chain[j] += x[i + j];
  return sum_of_chains(chain);
}

template <class T>
GLM5_INLINE void load_row(const T* from, i64 count, f32* to) {
  for (i64 i = 0; i < count; ++i) to[i] = to_f32(from[i]);
}

// Interleaved rope: the pairs (x[2i], x[2i+1]) turned in place. Products first, sums in a loop of their own: from one
// expression with both signs gcc 12 makes a fused multiply-add even where contraction is off.
template <i64 Pairs>
GLM5_INLINE void rotate_pairs(f32* x, const f32* cos_sin) {
  alignas(64) f32 own[2 * Pairs], crossed[2 * Pairs];
  for (i64 i = 0; i < Pairs; ++i) {
    const f32 cosine = cos_sin[2 * i], sine = cos_sin[2 * i + 1];
    own[2 * i] = x[2 * i] * cosine;
    own[2 * i + 1] = x[2 * i + 1] * cosine;
    crossed[2 * i] = x[2 * i + 1] * -sine;
    crossed[2 * i + 1] = x[2 * i] * sine;
  }
  for (i64 i = 0; i < 2 * Pairs; ++i) x[i] = own[i] + crossed[i];
}

// The same as to_f32(e4m3), without a branch.
GLM5_INLINE f32 f32_of_e4m3(u8 code) {
  const u32 magnitude = code & 0x7fu, sign = (code & 0x80u) << 24;
  const u32 normal = (magnitude + (120u << 3)) << 20;
  const u32 subnormal = bits_of(static_cast<f32>(static_cast<i32>(magnitude)) * 0.001953125f);  // magnitude * 2^-9
  const u32 finite = (magnitude >= 8 ? normal : subnormal) | sign;
  return f32_of_bits(magnitude == kE4m3Nan ? 0x7fc00000 : finite);
}

// A token of a latent cache of bytes as bf16.
GLM5_INLINE void decode_latent(const u8* token, bf16* to) {
  f32 scales[kMlaGroups];
  __builtin_memcpy(scales, token + kMlaScalesAt, sizeof(scales));
  for (i64 g = 0; g < kMlaGroups; ++g)
    for (i64 i = g * kFp8Group; i < (g + 1) * kFp8Group; ++i) to[i] = to_bf16(f32_of_e4m3(token[i]) * scales[g]);
  __builtin_memcpy(to + kMlaLatent, token + kMlaRopeAt, 2 * kMlaRope);
}

}  // namespace glm5::cpu
