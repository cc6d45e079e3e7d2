// The AMX toolbox: the tile configuration, result tiles, and e4m3 to bf16.
//
// TDPBF16PS multiplies a tile of rows (16 rows x 32 k) with a tile of pairs (16 pairs of k x 16 columns). Here b, the
// weights, are the rows: as they lie in memory, so that decoding them is all that they need. a is brought into pairs,
// once. So a result tile holds [16 columns of b][16 rows of a], transposed when it is stored.
//
// Tiles: tmm0..3 results; tmm4, tmm5 rows of b; tmm6, tmm7 pairs of a. All 16 rows of 64 bytes.
#pragma once

#include "cpu/avx512.h"

namespace glm5::amx {

constexpr i64 kTile = 16;         // rows and columns of a result
constexpr i64 kTileBf16 = 512;    // elements of an operand tile
constexpr i64 kTileF32 = 256;     // elements of a result tile

// The tile instructions of gcc 12 do not say that they touch memory.
GLM5_INLINE void memory_barrier() { __asm__ volatile("" : : : "memory"); }

struct alignas(64) TileConfig {
  u8 palette, start_row, reserved[14];
  u16 row_bytes[16];
  u8 rows[16];
};
static_assert(sizeof(TileConfig) == 64);

// The configuration belongs to the thread: every piece of work loads it, and gives the tiles back at its end.
GLM5_INLINE void configure_tiles() {
  TileConfig config{};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = 64;
    config.rows[i] = 16;
  }
  memory_barrier();
  _tile_loadconfig(&config);
  memory_barrier();
}
GLM5_INLINE void release_tiles() { _tile_release(); }

GLM5_INLINE void zero_results() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
// Four result tiles, one after another.
GLM5_INLINE void load_results(const f32* results) {
  memory_barrier();
  _tile_loadd(0, results, 64);
  _tile_loadd(1, results + kTileF32, 64);
  _tile_loadd(2, results + 2 * kTileF32, 64);
  _tile_loadd(3, results + 3 * kTileF32, 64);
}
GLM5_INLINE void store_results(f32* results) {
  _tile_stored(0, results, 64);
  _tile_stored(1, results + kTileF32, 64);
  _tile_stored(2, results + 2 * kTileF32, 64);
  _tile_stored(3, results + 3 * kTileF32, 64);
  memory_barrier();
}

// Results 0..3 += (b0, a0), (b0, a1), (b1, a0), (b1, a1); the tiles of consecutive steps lie together.
GLM5_INLINE void multiply_2x2(const bf16* b0, const bf16* b1, const bf16* a0, const bf16* a1, i64 steps) {
  memory_barrier();
  for (i64 s = 0; s < steps * kTileBf16; s += kTileBf16) {
    _tile_loadd(4, b0 + s, 64);
    _tile_loadd(6, a0 + s, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, a1 + s, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, b1 + s, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Results 0..3 += (b0, a), (b1, a), (b2, a), (b3, a), where the b are `distance` apart.
GLM5_INLINE void multiply_4x1(const bf16* b, i64 distance, const bf16* a, i64 steps) {
  memory_barrier();
  for (i64 s = 0; s < steps * kTileBf16; s += kTileBf16) {
    _tile_loadd(6, a + s, 64);
    _tile_loadd(4, b + s, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, b + distance + s, 64);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(4, b + 2 * distance + s, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(5, b + 3 * distance + s, 64);
    _tile_dpbf16ps(3, 5, 6);
  }
}

// Results 0..3 += (b, a0), (b, a1), (b, a2), (b, a3), where the a are `distance` apart.
GLM5_INLINE void multiply_1x4(const bf16* b, const bf16* a, i64 distance, i64 steps) {
  memory_barrier();
  for (i64 s = 0; s < steps * kTileBf16; s += kTileBf16) {
    _tile_loadd(4, b + s, 64);
    _tile_loadd(6, a + s, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, a + distance + s, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(6, a + 2 * distance + s, 64);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(7, a + 3 * distance + s, 64);
    _tile_dpbf16ps(3, 4, 7);
  }
}

// ---- e4m3 to bf16 by table: its upper and lower byte for each magnitude ----

struct E4m3Table {
  u8 low[128], high[128];
};
constexpr E4m3Table make_e4m3_table() {
  E4m3Table table{};
  for (int x = 0; x < 128; ++x) {
    const int exponent = x >> 3, mantissa = x & 7;
    int bits = ((exponent + 120) << 7) | (mantissa << 4);
    if (x == 0x7f) bits = 0x7fc0;
    if (exponent == 0) {  // mantissa * 2^-9
      const int top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;
      bits = mantissa == 0 ? 0 : ((top + 118) << 7) | ((mantissa << (7 - top)) & 0x7f);
    }
    table.low[x] = static_cast<u8>(bits);
    table.high[x] = static_cast<u8>(bits >> 8);
  }
  return table;
}
alignas(64) constexpr E4m3Table kE4m3Table = make_e4m3_table();

struct E4m3Decoder {
  __m512i low[2], high[2], order, sign;

  GLM5_INLINE E4m3Decoder() {
    for (int i = 0; i < 2; ++i) {
      low[i] = _mm512_load_si512(kE4m3Table.low + 64 * i);
      high[i] = _mm512_load_si512(kE4m3Table.high + 64 * i);
    }
    // Unpacking takes the lower eight bytes of each quarter, then the upper ones.
    order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    sign = _mm512_set1_epi8(static_cast<i8>(0x80));
  }

  // 64 e4m3 become two vectors of 32 bf16.
  GLM5_INLINE void decode(__m512i bytes, __m512i& first, __m512i& second) const {
    const __m512i x = _mm512_permutexvar_epi64(order, bytes);
    const __m512i lower = _mm512_permutex2var_epi8(low[0], x, low[1]);
    const __m512i magnitude = _mm512_permutex2var_epi8(high[0], x, high[1]);
    const __m512i upper = _mm512_ternarylogic_epi64(magnitude, x, sign, 0xf8);  // magnitude | (x & sign)
    first = _mm512_unpacklo_epi8(lower, upper);
    second = _mm512_unpackhi_epi8(lower, upper);
  }
};

}  // namespace glm5::amx
