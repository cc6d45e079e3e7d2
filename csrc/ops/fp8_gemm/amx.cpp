// fp8_gemm with AMX. Packing turns a into bf16 pairs, [block of 128 k][16 rows][4 steps]. An item takes 64 columns of
// b: 128 k of them are decoded to bf16 once (16 KiB, which stay in the L1 cache) and used for all rows of the chunk, 32
// x 32 results at a time. The tiles start each block from zero, so that they end as part(g); AVX-512 adds these to the
// totals with their scales while the tile unit works on the next 32 x 32.
#include "cpu/amx.h"
#include "cpu/float_environment.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::amx {
namespace {

constexpr i64 kColumnTiles = cpu::kGemmTile / kTile;
constexpr i64 kColumnBf16 = kSteps * kTileBf16;  // one block of 16 columns, or of 16 rows of a

// What one item works on. All of it is in the thread's scratch, except a.
struct Item {
  const bf16* a;  // pairs, [block][row tile][step][16 pairs][16][2]
  i64 row_tiles;
  bf16* b;        // the block of b, [column tile][step][16][32]
  f32* totals;    // [column tile][row tile][16 columns][16 rows]
  f32* parts;     // two sets of four result tiles
  f32* a_scales;  // of the block, [rows]
  f32* b_scales;  // [64]

  GLM5_INLINE f32* total(i64 column_tile, i64 row_tile) const {
    return totals + (column_tile * row_tiles + row_tile) * kTileF32;
  }
};

// Four parts that wait for their promotion: 32 x 32 results, or all 64 columns of the last 16 rows.
struct Waiting {
  const f32* parts;
  i64 column_tile, row_tile;
  bool is_square;
};

GLM5_INLINE void promote_tile(const Item& item, const f32* part, i64 column_tile, i64 row_tile) {
  f32* total = item.total(column_tile, row_tile);
  const __m512 rows = _mm512_load_ps(item.a_scales + row_tile * kTile);
#pragma GCC unroll 4
  for (i64 j = 0; j < kTile; ++j) {
    const __m512 scale = _mm512_mul_ps(rows, _mm512_set1_ps(item.b_scales[column_tile * kTile + j]));
    const __m512 sum = _mm512_fmadd_ps(scale, _mm512_load_ps(part + j * kTile), _mm512_load_ps(total + j * kTile));
    _mm512_store_ps(total + j * kTile, sum);
  }
}

// total <- fma(scale, part(g), total)
GLM5_INLINE void promote(const Item& item, const Waiting& waiting) {
  if (waiting.parts == nullptr) return;
#pragma GCC unroll 1
  for (i64 i = 0; i < 4; ++i) {
    const i64 column_tile = waiting.column_tile + (waiting.is_square ? i / 2 : i);
    const i64 row_tile = waiting.row_tile + (waiting.is_square ? i % 2 : 0);
    promote_tile(item, waiting.parts + i * kTileF32, column_tile, row_tile);
  }
}

// Decodes block g of 64 columns, zero beyond n and k.
void load_b(const Fp8GemmArgs& args, const cpu::GemmItem& where, i64 g, bf16* b) {
  const E4m3Decoder decoder;
  const i64 k = args.b.shape[1], first_k = g * kFp8Group;
  const u8* from = reinterpret_cast<const u8*>(args.b.at(where.first_column, first_k));
  // What comes four groups later: of the same columns, or of the next item's.
  const i64 over = first_k + 4 * kFp8Group - round_up(k, kFp8Group);
  const i64 ahead = over < 0 ? 4 * kFp8Group : cpu::kGemmTile * args.b.stride[0] + over - first_k;
  for (i64 j = 0; j < cpu::kGemmTile; ++j, from += args.b.stride[0]) {
    bf16* to = b + j / kTile * kColumnBf16 + j % kTile * 32;
    for (i64 half = 0; half < 2; ++half) {
      __m512i bytes = _mm512_setzero_si512(), first, second;
      if (j < where.columns) {
        bytes = _mm512_maskz_loadu_epi8(avx512::first_of_64(k - first_k - half * 64), from + half * 64);
        _mm_prefetch(reinterpret_cast<const char*>(from + half * 64 + ahead), _MM_HINT_T0);
      }
      decoder.decode(bytes, first, second);
      _mm512_store_si512(to + (2 * half) * kTileBf16, first);
      _mm512_store_si512(to + (2 * half + 1) * kTileBf16, second);
    }
  }
}

void load_scales(const Fp8GemmArgs& args, const cpu::GemmItem& where, i64 g, const Item& item) {
  for (i64 i = 0; i < item.row_tiles * kTile; ++i)
    item.a_scales[i] = i < where.rows ? *args.a_scales.at(where.first_row + i, g) : 0.0f;
  for (i64 j = 0; j < cpu::kGemmTile; ++j) {
    const i64 column = where.first_column + (j < where.columns ? j : 0);
    item.b_scales[j] = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
  }
}

// All results of the item for block g.
void multiply_block(const Item& item, i64 column_tiles, i64 g) {
  const bf16* a = item.a + g * item.row_tiles * kColumnBf16;
  Waiting waiting{nullptr, 0, 0, false};
  f32* parts = item.parts;
  i64 t = 0;
  for (; t + 2 <= item.row_tiles; t += 2) {
    for (i64 c = 0; c < column_tiles; c += 2) {
      const bf16* b = item.b + c * kColumnBf16;
      zero_results();
      multiply_2x2(b, b + kColumnBf16, a + t * kColumnBf16, a + (t + 1) * kColumnBf16, kSteps);
      promote(item, waiting);
      store_results(parts, kTileF32);
      waiting = {parts, c, t, true};
      parts = parts == item.parts ? item.parts + 4 * kTileF32 : item.parts;
    }
  }
  if (t < item.row_tiles) {
    zero_results();
    multiply_4x1(item.b, kColumnBf16, a + t * kColumnBf16, kSteps);
    promote(item, waiting);
    store_results(parts, kTileF32);
    waiting = {parts, 0, t, false};
  }
  promote(item, waiting);
}

template <class T>
GLM5_INLINE void store_item(const Fp8GemmArgs& args, const cpu::GemmItem& where, const Item& item) {
  const Tensor<T, 2> out = args.out.as<T>();
  for (i64 t = 0; t < item.row_tiles; ++t) {
    for (i64 c = 0; c * kTile < where.columns; ++c)
      store_result(out.at(where.first_row + t * kTile, where.first_column + c * kTile), out.stride[0], item.total(c, t),
                   where.rows - t * kTile, where.columns - c * kTile, args.accumulate);
  }
}

void multiply_item(const cpu::GemmTask<Fp8GemmArgs>& task, const cpu::GemmItem& where,
                   const cpu::GemmWorkspace& workspace) {
  const Fp8GemmArgs& args = task.args;
  Item item{};
  item.a = reinterpret_cast<const bf16*>(workspace.packed);
  item.row_tiles = ceil_div(where.rows, kTile);
  item.b = reinterpret_cast<bf16*>(workspace.panel);
  item.totals = workspace.totals;
  item.parts = workspace.rows;
  item.a_scales = item.parts + 8 * kTileF32;
  item.b_scales = item.a_scales + cpu::kGemmTileRows;
  for (i64 i = 0; i < kColumnTiles * item.row_tiles * kTileF32; i += 16)
    _mm512_store_ps(item.totals + i, _mm512_setzero_ps());
  for (i64 g = 0; g < task.part.blocks(); ++g) {
    load_b(args, where, g, item.b);
    load_scales(args, where, g, item);
    multiply_block(item, ceil_div(where.columns, kTile), g);
  }
  if (args.out.dtype == Float::f32) {
    store_item<f32>(args, where, item);
  } else {
    store_item<bf16>(args, where, item);
  }
}
static_assert((8 * kTileF32 + cpu::kGemmTileRows + cpu::kGemmTile) * 4 <= cpu::kGemmRowBytes);

}  // namespace

void fp8_gemm_pack(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64) {
  const E4m3Decoder decoder;
  const cpu::GemmPart& part = task.part;
  const i64 k = part.k, row_tiles = ceil_div(part.rows, kTile);
  bf16* packed = reinterpret_cast<bf16*>(cpu::GemmWorkspace(task.args.workspace, part, 0).packed);
  for (i64 t = begin; t < end; ++t) {
    for (i64 first_k = 0; first_k < k; first_k += 64) {
      bf16* to = packed + (first_k / kFp8Group * row_tiles + t) * kColumnBf16 + first_k % kFp8Group / 32 * kTileBf16;
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
      bf16* to = packed + (k / kFp8Group * row_tiles + t) * kColumnBf16 + 2 * kTileBf16;
      for (i64 i = 0; i < 2 * kTileBf16; i += 32) _mm512_store_si512(to + i, _mm512_setzero_si512());
    }
  }
}

void fp8_gemm_multiply(const cpu::GemmTask<Fp8GemmArgs>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const cpu::GemmWorkspace workspace(task.args.workspace, task.part, thread);
  configure_tiles();
  for (i64 i = begin; i < end; ++i) multiply_item(task, {task.part, i}, workspace);
  release_tiles();
  cpu::restore_floats(before);
}

}  // namespace glm5::amx
