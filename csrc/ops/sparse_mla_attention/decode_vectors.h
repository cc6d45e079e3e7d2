// sparse_mla_decode, schedule "fast", with vectors of any width (Lanes: cpu/gemm_vectors.h).
//
// A tile's keys, 148 KiB as f32, come from the L2 cache. q . key: vectors run along the dims, so that keys need no
// transposition; 3 heads x 2 keys (AVX-512: 6 x 4) fill 12 (24) registers with chains, ten loads feed as many
// multiply-adds as registers, and 8 keys stay in the L1 cache for all heads. o_tile: vectors run along the columns, two
// of them for 6 (12) heads.
#pragma once

#include "cpu/gemm_vectors.h"
#include "ops/sparse_mla_attention/decode.h"

namespace glm5::sparse_mla {

// Each object has its own kernel: no symbol of it may be shared.
namespace {

template <class L>
struct DecodeKernel {
  using Lanes = L;
  using F32 = typename Lanes::F32;
  static constexpr i64 kCount = Lanes::kCount;
  static constexpr int kVectors = kChains / kCount, kKeys = kCount / 4;  // of a key's 16 chains; at a time
  static constexpr i64 kKeyBlock = 8;

  GLM5_INLINE static void load(const bf16* from, i64 count, f32* to) {
    for (i64 i = 0; i < count; i += 8) _mm256_store_ps(to + i, avx2::load_f32x8(from + i));
  }
  GLM5_INLINE static void load(const e4m3* from, i64 count, f32 scale, f32* to) {
    const __m256 factor = _mm256_set1_ps(scale);
    for (i64 i = 0; i < count; i += 8) _mm256_store_ps(to + i, _mm256_mul_ps(avx2::load_f32x8(from + i), factor));
  }
  GLM5_INLINE static void store(const f32* o, f32 weight, bf16* out) {
    for (i64 c = 0; c < kMlaLatent; c += 8)
      avx2::store_f32x8(out + c, _mm256_mul_ps(_mm256_load_ps(o + c), _mm256_set1_ps(weight)));
  }

  // The products of Heads queries with kKeys keys.
  template <int Heads>
  GLM5_INLINE static void multiply_few(const f32* queries, const f32* keys, f32* products) {
    F32 chain[Heads][kKeys][kVectors];
#pragma GCC unroll 16
    for (int h = 0; h < Heads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeys * kVectors; ++i) chain[h][i / kVectors][i % kVectors] = Lanes::zero();
    }
#pragma GCC unroll 2
    for (i64 k = 0; k < kMlaDim; k += kChains) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        F32 key[kKeys];
#pragma GCC unroll 16
        for (int i = 0; i < kKeys; ++i) key[i] = Lanes::load(keys + i * kDecodeStride + k + v * kCount);
#pragma GCC unroll 16
        for (int h = 0; h < Heads; ++h) {
          const F32 q = Lanes::load(queries + h * kDecodeStride + k + v * kCount);
#pragma GCC unroll 16
          for (int i = 0; i < kKeys; ++i) chain[h][i][v] = Lanes::fma(q, key[i], chain[h][i][v]);
        }
      }
    }
#pragma GCC unroll 16
    for (int h = 0; h < Heads; ++h) {
#pragma GCC unroll 16
      for (int i = 0; i < kKeys; ++i) products[h * kDecodeTile + i] = Lanes::sum_of_16(chain[h][i]);
    }
  }

  GLM5_INLINE static void multiply_keys(const DecodeScratch& scratch, i64 heads) {
    for (i64 block = 0; block < kDecodeTile; block += kKeyBlock) {
      cpu::for_row_blocks<Lanes::kStepRows>(heads, [&]<int Heads>(cpu::RowCount<Heads>, i64 h)
                                                       [[gnu::always_inline]] {
        for (i64 i = block; i < block + kKeyBlock; i += kKeys)
          multiply_few<Heads>(scratch.queries + h * kDecodeStride, scratch.keys + i * kDecodeStride,
                              scratch.weights + h * kDecodeTile + i);
      });
    }
  }

  template <class Put>
  GLM5_INLINE static void multiply_values(const DecodeScratch& scratch, i64 heads, const Put& put) {
    for (i64 c = 0; c < kMlaLatent; c += 2 * kCount) {
      cpu::for_row_blocks<Lanes::kChainRows>(heads, [&]<int Heads>(cpu::RowCount<Heads>, i64 h)
                                                        [[gnu::always_inline]] {
        F32 chain[Heads][2];
#pragma GCC unroll 16
        for (int r = 0; r < Heads; ++r) chain[r][0] = chain[r][1] = Lanes::zero();
        const f32* p = scratch.weights + h * kDecodeTile;
#pragma GCC unroll 4
        for (i64 i = 0; i < kDecodeTile; ++i) {
          const f32* value = scratch.keys + i * kDecodeStride + c;
          const F32 left = Lanes::load(value), right = Lanes::load(value + kCount);
#pragma GCC unroll 16
          for (int r = 0; r < Heads; ++r) {
            const F32 weight = Lanes::broadcast(p[r * kDecodeTile + i]);
            chain[r][0] = Lanes::fma(weight, left, chain[r][0]);
            chain[r][1] = Lanes::fma(weight, right, chain[r][1]);
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < Heads; ++r) {
          put(h + r, c, chain[r][0]);
          put(h + r, c + kCount, chain[r][1]);
        }
      });
    }
  }
};

}  // namespace

}  // namespace glm5::sparse_mla
