// Matrix products with AMX: how the kernels of fp8_gemm and gemm walk through their items.
//
// a lies in pairs, [block of 128 k][16 rows][4 steps]. An item takes panels of 64 columns of b, a block of 128 k at a
// time: brought into tiles (16 KiB, which stay in the L1 cache) and used for all rows of the chunk, 32 x 32 results at
// a time. After such a product a share of the next panel is brought, so that AVX-512 works while the tile unit does.
//
// Why so. A product of 32 x 32 results takes 16 TDPBF16PS, 256 cycles, in which the two load ports serve 16 tiles, 128
// cycles. (The processor's manual: TDPBF16PS 16 cycles, a tile load 8, a tile store 16.) Every two products bring 8 KiB
// of a from the L2 cache, and the totals of each go there and back: 48 bytes a cycle. Panels of 64 columns alone would
// ask the L3 cache for 16 bytes a cycle, more than it gives a core; wide items, whose panels share a block of a, ask
// for
// 4. Calculated, not measured.
#pragma once

#include "cpu/amx.h"
#include "cpu/gemm.h"

namespace glm5::amx {

constexpr i64 kSteps = cpu::kGemmBlock / cpu::kGemmStep;
constexpr i64 kPanelTiles = cpu::kGemmTile / kTile;
constexpr i64 kBlockBf16 = kSteps * kTileBf16;        // 128 k of 16 rows or columns
constexpr i64 kPanelBf16 = kPanelTiles * kBlockBf16;  // 128 k of 64 columns

// What one item works on.
struct TileItem {
  cpu::GemmItem where;
  const bf16* a;  // [block][row tile][step][16 pairs][16][2]
  i64 row_tiles;
  bf16* panels[2];  // [column tile][step][16][32]
  f32* totals;      // [panel][row tile pair][column tile pair][4]; an odd last row tile: [4 column tiles]
  f32* small;       // what else a kernel keeps

  GLM5_INLINE TileItem(const cpu::GemmPart& part, const cpu::GemmWorkspace& workspace, i64 item)
      : where(part, item),
        a(reinterpret_cast<const bf16*>(workspace.packed_of(part, where.batch))),
        row_tiles(ceil_div(where.rows, kTile)),
        panels{reinterpret_cast<bf16*>(workspace.panel), reinterpret_cast<bf16*>(workspace.panel) + kPanelBf16},
        totals(workspace.totals),
        small(workspace.rows) {}

  // The results of column tile c of a panel and row tile t.
  GLM5_INLINE f32* total_of(i64 panel, i64 c, i64 t) const {
    f32* total = totals + (panel * row_tiles + t / 2 * 2) * kPanelTiles * kTileF32;
    if (t + 1 == row_tiles && t % 2 == 0) return total + c * kTileF32;
    return total + (c / 2 * 4 + c % 2 * 2 + t % 2) * kTileF32;
  }
  GLM5_INLINE i64 column_tiles(i64 panel) const {
    return ceil_div(smaller(cpu::kGemmTile, where.columns - panel * cpu::kGemmTile), kTile);
  }
};
static_assert(2 * kPanelBf16 * 2 <= cpu::kGemmPanelBytes);

// ---- Products ----
// Four result tiles that belong together: 32 x 32 results, or all 64 columns of the last 16 rows.
struct Results {
  f32* total;
  i64 panel, column_tile, row_tile;
  bool is_square;
};

// Brings the next panel, share by share.
template <class Kernel>
struct NextPanel {
  i64 block, panel;
  bf16* to;  // nullptr: there is none
  i64 done;  // of Kernel::kUnits

  GLM5_INLINE void bring(const Kernel& kernel, i64 until) {
    if (to != nullptr) kernel.load_b(block, panel, done, until, to);
    done = until;
  }
};

// All rows of an item against one panel of a block.
template <class Kernel>
GLM5_INLINE void multiply_panel(Kernel& kernel, const TileItem& item, i64 block, i64 panel, const bf16* b,
                                NextPanel<Kernel> next) {
  const bf16* a = item.a + block * item.row_tiles * kBlockBf16;
  const i64 column_tiles = item.column_tiles(panel), steps = kernel.steps_of(block);
  const i64 products = item.row_tiles / 2 * ceil_div(column_tiles, 2);
  i64 t = 0, product = 0;
  for (; t + 2 <= item.row_tiles; t += 2) {
    for (i64 c = 0; c < column_tiles; c += 2) {
      const Results results{item.total_of(panel, c, t), panel, c, t, true};
      kernel.begin(results, block);
      multiply_2x2(b + c * kBlockBf16, b + (c + 1) * kBlockBf16, a + t * kBlockBf16, a + (t + 1) * kBlockBf16, steps);
      next.bring(kernel, Kernel::kUnits * ++product / products);
      kernel.end(results);
    }
  }
  if (t < item.row_tiles) {
    const Results results{item.total_of(panel, 0, t), panel, 0, t, false};
    kernel.begin(results, block);
    multiply_4x1(b, kBlockBf16, a + t * kBlockBf16, steps);
    next.bring(kernel, Kernel::kUnits);
    kernel.end(results);
  }
}

// A Kernel brings units first .. last of a panel (load_b), knows how many steps a block has (steps_of), prepares for a
// panel and tidies up after it (begin_panel, end_panel), and sets up and puts away the result tiles (begin, end).
template <class Kernel>
GLM5_INLINE void multiply_item(Kernel& kernel, const TileItem& item, i64 blocks) {
  const i64 panels = ceil_div(item.where.columns, cpu::kGemmTile);
  if (blocks == 0) {
    for (i64 i = 0; i < panels * kPanelTiles * item.row_tiles * kTileF32; ++i) item.totals[i] = 0.0f;
    return;
  }
  kernel.load_b(0, 0, 0, Kernel::kUnits, item.panels[0]);
  for (i64 i = 0; i < blocks * panels; ++i) {
    const i64 block = i / panels, panel = i % panels;
    const bool is_last = i + 1 == blocks * panels;
    const NextPanel<Kernel> next{(i + 1) / panels, (i + 1) % panels, is_last ? nullptr : item.panels[(i + 1) % 2], 0};
    kernel.begin_panel(block, panel);
    multiply_panel(kernel, item, block, panel, item.panels[i % 2], next);
    kernel.end_panel();
  }
}

// ---- Result tiles to rows of out ----

// out[i][j] for 16 rows and columns of one result tile; those that exist.
template <class T>
GLM5_INLINE void store_result(T* out, i64 out_stride, const f32* result, i64 rows, i64 columns, bool accumulate) {
  __m512i x[16];
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) x[j] = _mm512_load_si512(result + j * kTile);
  avx512::transpose_16x16(x);
  const __mmask16 live = avx512::first_of_16(columns);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i >= rows) break;
    __m512 sum = _mm512_castsi512_ps(x[i]);
    if (accumulate) sum = _mm512_add_ps(avx512::load_f32x16(out + i * out_stride, live), sum);
    avx512::store_f32x16(out + i * out_stride, sum, live);
  }
}

template <class T>
GLM5_INLINE void store_item(const Tensor<T, 2>& out, const TileItem& item, bool accumulate) {
  const cpu::GemmItem& where = item.where;
  for (i64 t = 0; t < item.row_tiles; ++t) {
    for (i64 c = 0; c * kTile < where.columns; ++c)
      store_result(out.at(where.first_row + t * kTile, where.first_column + c * kTile), out.stride[0],
                   item.total_of(c / kPanelTiles, c % kPanelTiles, t), where.rows - t * kTile,
                   where.columns - c * kTile, accumulate);
  }
}

// The items of a task. Kernel: also made of the arguments and an item.
template <class Kernel, class Args>
GLM5_INLINE void multiply_tiles(const cpu::GemmTask<Args>& task, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = Kernel::use_floats();
  const cpu::GemmWorkspace workspace(task, thread);
  configure_tiles();
  for (i64 i = begin; i < end; ++i) {
    const TileItem item(task.part, workspace, i);
    Kernel kernel(task.args, item);
    multiply_item(kernel, item, task.part.blocks());
    const FloatTensor<2> out = kernel.out();
    if (out.dtype == Float::f32) {
      store_item(out.as<f32>(), item, task.args.accumulate);
    } else {
      store_item(out.as<bf16>(), item, task.args.accumulate);
    }
  }
  release_tiles();
  cpu::restore_floats(before);
}

}  // namespace glm5::amx
