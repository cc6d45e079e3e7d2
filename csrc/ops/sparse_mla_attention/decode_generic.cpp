// sparse_mla_decode, schedule "fast", in portable C++: the tree of a tile spelled out.
#include "ops/sparse_mla_attention/decode.h"

namespace glm5::generic {
namespace {

using sparse_mla::DecodeScratch;
using sparse_mla::kDecodeStride;
using sparse_mla::kDecodeTile;

struct Kernel {
  using Lanes = cpu::ScalarLanes;

  static void load(const bf16* from, i64 count, f32* to) {
    for (i64 i = 0; i < count; ++i) to[i] = to_f32(from[i]);
  }
  static void load(const e4m3* from, i64 count, f32 scale, f32* to) {
    for (i64 i = 0; i < count; ++i) to[i] = to_f32(from[i]) * scale;
  }
  static void store(const f32* o, f32 weight, bf16* out) {
    for (i64 c = 0; c < kMlaLatent; ++c) out[c] = to_bf16(o[c] * weight);
  }

  static void multiply_keys(const DecodeScratch& scratch, i64 heads) {
    for (i64 h = 0; h < heads; ++h) {
      const f32* q = scratch.queries + h * kDecodeStride;
      for (i64 i = 0; i < kDecodeTile; ++i) {
        const f32* key = scratch.keys + i * kDecodeStride;
        f32 chain[sparse_mla::kChains] = {};
        for (i64 k = 0; k < kMlaDim; k += sparse_mla::kChains)
          for (i64 c = 0; c < sparse_mla::kChains; ++c) chain[c] = __builtin_fmaf(q[k + c], key[k + c], chain[c]);
        scratch.weights[h * kDecodeTile + i] = sparse_mla::sum_of_chains(chain);
      }
    }
  }

  template <class Put>
  static void multiply_values(const DecodeScratch& scratch, i64 heads, const Put& put) {
    for (i64 h = 0; h < heads; ++h) {
      const f32* p = scratch.weights + h * kDecodeTile;
      for (i64 c = 0; c < kMlaLatent; ++c) {
        f32 o = 0.0f;
        for (i64 i = 0; i < kDecodeTile; ++i) o = __builtin_fmaf(p[i], scratch.keys[i * kDecodeStride + c], o);
        put(h, c, o);
      }
    }
  }
};

}  // namespace

void sparse_mla_decode(const sparse_mla::DecodeTask& task, i64 begin, i64 end, i64 thread) {
  sparse_mla::decode<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::generic
