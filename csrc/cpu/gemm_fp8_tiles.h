// Products with e4m3 weights and scales, with AMX (cpu/gemm_tiles.h). b is decoded to bf16; the tiles start each block
// from zero, so that they end as part(g). AVX-512 adds these to the totals with their scales while the tile unit works
// on the next product.
//
// Calculated, not measured: a panel takes the tile unit 16 cycles for each row of the chunk. Decoding it takes 900 (7
// for 64 bytes: seven shuffles, which one port alone can run), 22 % of that for 256 rows; the promotion of a product
// takes 64 of its 256 (96 with a scale for each column). As they run beside it no port is busy for more than 3/4 of the
// time. With 16 rows or fewer decoding takes longest: 9 bytes of b a cycle and core, about what memory gives two cores.
#pragma once

#include "core/glm5.h"
#include "cpu/gemm_plain_tiles.h"

namespace glm5::gemm_fp8_tiles {

using namespace amx;

// A is the type of the rows.
template <class A>
struct Kernel {
  using Args = ScaledGemmArgs<A>;
  static constexpr i64 kUnits = cpu::kGemmTile;  // columns of a panel

  const Args& args;
  const TileItem& item;
  const E4m3Decoder decoder;
  // In the thread's scratch.
  f32* parts;                                // two sets of four result tiles
  f32* a_scales;                             // of the block, [rows]
  f32* b_scales;                             // of the panel, [64] or one
  Results waiting{nullptr, 0, 0, 0, false};  // its parts wait to be added to the totals
  i64 set = 0;                               // where they are

  GLM5_INLINE Kernel(const Args& args, const TileItem& item)
      : args(args),
        item(item),
        parts(item.small),
        a_scales(parts + 8 * kTileF32),
        b_scales(a_scales + cpu::kGemmTileRows) {
    const i64 panels = ceil_div(item.where.columns, cpu::kGemmTile);
    for (i64 i = 0; i < panels * kPanelTiles * item.row_tiles * kTileF32; i += 16)
      _mm512_store_ps(item.totals + i, _mm512_setzero_ps());
  }
  // The AMX unit counts subnormal numbers as zero, so with rows of bf16 the totals do too.
  GLM5_INLINE static cpu::FloatState use_floats() {
    return sizeof(A) == 2 ? cpu::use_flushing_floats() : cpu::use_default_floats();
  }
  GLM5_INLINE const FloatTensor<2>& out() const { return args.out; }
  GLM5_INLINE i64 steps_of(i64) const { return kSteps; }

  // Decodes columns of a panel, zero beyond n and k.
  GLM5_INLINE void load_b(i64 g, i64 panel, i64 first, i64 last, bf16* to) const {
    const i64 k = args.b.shape[1], first_k = g * kFp8Group, stride = args.b.stride[0];
    // What comes four panels later: of the same columns, or of the next item's.
    const i64 groups = larger(1, 4 * cpu::kGemmTile / item.where.columns);
    const i64 over = first_k + groups * kFp8Group - round_up(k, kFp8Group);
    const i64 ahead = over < 0 ? groups * kFp8Group : item.where.columns * stride + over - first_k;
    for (i64 j = first; j < last; ++j) {
      const i64 column = panel * cpu::kGemmTile + j;
      for (i64 half = 0; half < 2; ++half) {
        __m512i bytes = _mm512_setzero_si512(), even, odd;
        if (column < item.where.columns) {
          const u8* from =
              reinterpret_cast<const u8*>(args.b.at(item.where.first_column + column, first_k)) + half * 64;
          bytes = _mm512_maskz_loadu_epi8(avx512::first_of_64(k - first_k - half * 64), from);
          __builtin_prefetch(from + ahead);
        }
        decoder.decode(bytes, even, odd);
        bf16* step = to + j / kTile * kBlockBf16 + 2 * half * kTileBf16 + j % kTile * 32;
        _mm512_store_si512(step, even);
        _mm512_store_si512(step + kTileBf16, odd);
      }
    }
  }

  GLM5_INLINE void begin_panel(i64 g, i64 panel) {
    if (panel == 0) {
      for (i64 i = 0; i < item.row_tiles * kTile; ++i)
        a_scales[i] = i < item.where.rows ? *args.a_scales.at(item.where.first_row + i, g) : 0.0f;
    }
    const i64 first = item.where.first_column + panel * cpu::kGemmTile;
    if (!args.b_scales_per_row) {
      b_scales[0] = *args.b_scales.at(first / kFp8Group, g);
      return;
    }
    const i64 valid = item.where.columns - panel * cpu::kGemmTile;
    for (i64 j = 0; j < cpu::kGemmTile; ++j) b_scales[j] = *args.b_scales.at(first + (j < valid ? j : 0), g);
  }
  GLM5_INLINE void end_panel() {
    promote();
    waiting.total = nullptr;
  }

  GLM5_INLINE void begin(const Results&, i64) { zero_results(); }
  GLM5_INLINE void end(const Results& results) {
    promote();
    set = 1 - set;
    store_results(parts + set * 4 * kTileF32);
    waiting = results;
  }

  // total <- fma(scale, part(g), total) for one result tile.
  template <bool PerColumn>
  GLM5_INLINE void promote_tile(const f32* part, f32* total, const f32* row_scales, const f32* column_scales) const {
    const __m512 rows = _mm512_load_ps(row_scales);
    __m512 scale = _mm512_mul_ps(rows, _mm512_set1_ps(b_scales[0]));
#pragma GCC unroll 4
    for (i64 j = 0; j < kTile; ++j) {
      if constexpr (PerColumn) scale = _mm512_mul_ps(rows, _mm512_set1_ps(column_scales[j]));
      const __m512 sum = _mm512_fmadd_ps(scale, _mm512_load_ps(part + j * kTile), _mm512_load_ps(total + j * kTile));
      _mm512_store_ps(total + j * kTile, sum);
    }
  }

  GLM5_INLINE void promote() const {
    if (waiting.total == nullptr) return;
#pragma GCC unroll 1
    for (i64 i = 0; i < 4; ++i) {
      const f32* rows = a_scales + (waiting.row_tile + (waiting.is_square ? i % 2 : 0)) * kTile;
      const f32* columns = b_scales + (waiting.column_tile + (waiting.is_square ? i / 2 : i)) * kTile;
      const f32* part = parts + (set * 4 + i) * kTileF32;
      f32* total = waiting.total + i * kTileF32;
      if (args.b_scales_per_row) {
        promote_tile<true>(part, total, rows, columns);
      } else {
        promote_tile<false>(part, total, rows, columns);
      }
    }
  }
};
static_assert((8 * kTileF32 + cpu::kGemmTileRows + cpu::kGemmTile) * 4 <= cpu::kGemmRowBytes);

GLM5_INLINE void pack(const cpu::GemmTask<ScaledGemmArgs<e4m3>>& task, i64 begin, i64 end) {
  const E4m3Decoder decoder;
  const cpu::GemmPart& part = task.part;
  const i64 k = part.k, row_tiles = ceil_div(part.rows, kTile);
  bf16* packed = reinterpret_cast<bf16*>(task.packed);
  for (i64 t = begin; t < end; ++t) {
    for (i64 first_k = 0; first_k < k; first_k += 64) {
      bf16* to = packed + (first_k / kFp8Group * row_tiles + t) * kBlockBf16 + first_k % kFp8Group / 32 * kTileBf16;
      __m512i first[16], second[16];
#pragma GCC unroll 1
      for (i64 i = 0; i < 16; ++i) {
        const i64 row = t * kTile + i;
        const __mmask64 live = row < part.rows ? avx512::first_of_64(k - first_k) : 0;
        const e4m3* from = task.args.a.at(part.first_row + (row < part.rows ? row : 0), first_k);
        decoder.decode(_mm512_maskz_loadu_epi8(live, from), first[i], second[i]);
      }
      avx512::transpose_16x16(first);
      avx512::transpose_16x16(second);
#pragma GCC unroll 16
      for (i64 i = 0; i < 16; ++i) {
        _mm512_store_si512(to + i * 32, first[i]);
        _mm512_store_si512(to + kTileBf16 + i * 32, second[i]);
      }
    }
    // The block's second half, where k ends before it.
    if (k % kFp8Group != 0 && k % kFp8Group <= 64) {
      bf16* to = packed + (k / kFp8Group * row_tiles + t) * kBlockBf16 + 2 * kTileBf16;
      for (i64 i = 0; i < 2 * kTileBf16; i += 32) _mm512_store_si512(to + i, _mm512_setzero_si512());
    }
  }
}

// What the vectors' scaled rows would make infinite is infinite here too.
GLM5_INLINE __m512i bounded(__m512i x) {
  const __m512i magnitude = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
  const __mmask32 beyond = _mm512_cmpge_epu16_mask(magnitude, _mm512_set1_epi16(0x7b80)) &  // 2^120
                           _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(0x7f80));
  const __m512i sign = _mm512_andnot_si512(_mm512_set1_epi16(0x7fff), x);
  return _mm512_mask_mov_epi16(x, beyond, _mm512_or_si512(sign, _mm512_set1_epi16(0x7f80)));
}

GLM5_INLINE void pack(const cpu::GemmTask<ScaledGemmArgs<bf16>>& task, i64 begin, i64 end) {
  const Tensor<const bf16, 2>& a = task.args.a;
  const cpu::GemmPart& part = task.part;
  const i64 row_tiles = ceil_div(part.rows, kTile);
  bf16* packed = reinterpret_cast<bf16*>(task.packed);
  for (i64 t = begin; t < end; ++t) {
    for (i64 k = 0; k < part.blocks() * cpu::kGemmBlock; k += cpu::kGemmStep) {
      const i64 block = k / cpu::kGemmBlock, step = k % cpu::kGemmBlock / cpu::kGemmStep;
      __m512i x[16];
      gemm_plain_tiles::load_tile<true>(a.at(part.first_row + t * kTile, k), a.stride[0], 1, part.rows - t * kTile,
                                        larger(0, part.k - k), x);
#pragma GCC unroll 16
      for (i64 i = 0; i < 16; ++i) x[i] = bounded(x[i]);
      gemm_plain_tiles::store_tile(packed + (block * row_tiles + t) * kBlockBf16 + step * kTileBf16, x);
    }
  }
}

template <class A>
GLM5_INLINE void multiply(const cpu::GemmTask<ScaledGemmArgs<A>>& task, i64 begin, i64 end, i64 thread) {
  multiply_tiles<Kernel<A>>(task, begin, end, thread);
}

}  // namespace glm5::gemm_fp8_tiles
