// The latent cache of MLA: for each token the normalised latent (512 values, which are keys and values at once) and the
// rotated part of the key (64), in pages of 64 tokens. As bf16, or in 656 bytes: the latent as e4m3 in four groups of
// 128, the groups' scales, the rotated part as bf16.
#pragma once

#include "core/glm5.h"

namespace glm5 {

constexpr i64 kMlaLatent = 512;
constexpr i64 kMlaRope = 64;
constexpr i64 kMlaDim = kMlaLatent + kMlaRope;
constexpr i64 kMlaGroups = kMlaLatent / kFp8Group;
constexpr i64 kMlaScalesAt = kMlaLatent, kMlaRopeAt = kMlaScalesAt + 4 * kMlaGroups;  // bytes within a token
constexpr i64 kMlaTokenBytes = kMlaRopeAt + 2 * kMlaRope;
static_assert(kMlaTokenBytes == 656);

// One of the two exists. A slot is page * 64 + row.
struct MlaCache {
  Tensor<u8, 3> bytes;    // [pages, 64, 656], row-major
  Tensor<bf16, 3> values;  // [pages, 64, 576], row-major

  GLM5_INLINE i64 slots() const { return (bytes.exists() ? bytes.shape[0] : values.shape[0]) * kPage; }
  GLM5_INLINE u8* bytes_of(i64 slot) const { return bytes.at(slot / kPage, slot % kPage, 0); }
  GLM5_INLINE bf16* values_of(i64 slot) const { return values.at(slot / kPage, slot % kPage, 0); }
};

}  // namespace glm5
