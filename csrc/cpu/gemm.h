// What the CPU kernels of fp8_gemm and gemm share: how a product is cut into items, and the layout of their workspace.
//
// An item is a tile of out. It walks along k, 128 at a time, brings a block of its rows of a into the form that the
// inner loops read, into the thread's own L2 cache, and uses it for all its columns. With few rows (and with AMX, where
// that form is dear) a is packed beforehand, once for all items. All numbers here are those of the loops, not of the
// result: the summation tree knows none of them but the 128 of a block and the 32 of a step.
#pragma once

#include "core/fp8.h"
#include "core/tensor.h"
#include "cpu/float_environment.h"

namespace glm5::cpu {

constexpr i64 kGemmBlock = 128;  // k of a block
constexpr i64 kGemmStep = 32;    // k of a step of the summation tree
constexpr i64 kGemmTile = 64;    // columns of an item are a multiple; none of these has two scale blocks

// The vector kernels' items: packed rows (128 KiB) and totals (256 KiB) stay in a 512 KiB L2 cache.
constexpr i64 kGemmVectorRows = 256;
constexpr i64 kGemmVectorColumns = 256;
// Below this many rows an item finishes one panel of columns for all k before it takes the next, so that few streams of
// b are open at a time; from it on the rows are too many to be read so often.
constexpr i64 kGemmFewRows = 32;

// AMX: L2 has 2 MiB there, which hold a block of packed rows (256 KiB) and totals (1 MiB).
constexpr i64 kGemmTileRows = 1024;
constexpr i64 kGemmTileColumns = 256;
constexpr i64 kGemmPackRows = 16;  // rows of an item of its packing phase

// Products of a batch that are packed at a time: so many that their a stays in the caches.
constexpr i64 kGemmPackedBytes = 4 << 20;

// A thread's scratch beside the totals: a decoded block of b, a block of rows or (AMX) parts and scales, small change.
constexpr i64 kGemmPanelBytes = kGemmTile * kGemmBlock * 4;
constexpr i64 kGemmRowBytes = (kGemmVectorRows + 16) * kGemmBlock * 4;  // 16: the last rows' prefetches look ahead
constexpr i64 kGemmStageBytes = 8 * 1024;

// A part of a product: `rows` rows of `batches` matrices, from first_row and first_batch on.
struct GemmPart {
  i64 first_batch, batches;
  i64 first_row, rows;
  i64 n, k;
  i64 item_rows, item_columns;
  bool is_packed;  // a lies packed in the workspace
  bool with_amx;

  GLM5_INLINE i64 blocks() const { return ceil_div(k, kGemmBlock); }
  GLM5_INLINE i64 items() const { return batches * ceil_div(rows, item_rows) * ceil_div(n, item_columns); }
  // What is packed at a time: 16 rows, or with the vector kernels a block of all rows.
  GLM5_INLINE i64 pack_items() const { return batches * (with_amx ? ceil_div(rows, kGemmPackRows) : blocks()); }
  GLM5_INLINE i64 pack_item_values() const { return with_amx ? kGemmPackRows * k : rows * kGemmBlock; }
  // Of one matrix, packed: pairs of bf16 in tiles of 16 rows, or f32.
  GLM5_INLINE i64 packed_bytes() const {
    return blocks() * kGemmBlock * (with_amx ? 2 * round_up(rows, kGemmPackRows) : 4 * rows);
  }
};

// What an implementation gets. The two pointers are aligned to a cache line.
template <class Args>
struct GemmTask {
  Args args;
  GemmPart part;
  u8* packed;         // a of the part, where it is packed
  u8* scratch;        // of the first thread
  i64 scratch_bytes;  // of each thread
};

// The first part of a product; the others are like it.
GLM5_INLINE GemmPart gemm_part(i64 batches, i64 m, i64 n, i64 k, bool with_amx, i64 threads) {
  const i64 row_blocks = ceil_div(m, with_amx ? kGemmTileRows : kGemmVectorRows);
  GemmPart part{0, batches, 0, m, n, k, m, kGemmTile, true, with_amx};
  if (with_amx) {
    part.rows = part.item_rows = smaller(m, kGemmTileRows);
  } else if (m >= kGemmFewRows) {
    part.is_packed = false;
    // Even blocks of rows; 12 is a multiple of the rows that any inner loop takes at once.
    part.item_rows = smaller(kGemmVectorRows, round_up(ceil_div(m, row_blocks), 12));
  }
  if (m >= kGemmFewRows) {
    // Wide items bring a in seldom, but two of them should be there for every thread.
    const i64 wanted = ceil_div(threads == 1 ? 1 : 2 * threads, larger(1, batches * row_blocks));
    const i64 widest = with_amx ? kGemmTileColumns : kGemmVectorColumns;
    part.item_columns = smaller(widest, larger(1, n / (wanted * kGemmTile)) * kGemmTile);
  }
  if (part.is_packed) part.batches = smaller(batches, larger(1, kGemmPackedBytes / larger(1, part.packed_bytes())));
  return part;
}

// 64 more: the workspace is aligned to a cache line inside.
GLM5_INLINE i64 gemm_packed_bytes(const GemmPart& part) {
  return part.is_packed ? round_up(part.batches * part.packed_bytes(), 64) : 0;
}
GLM5_INLINE i64 gemm_total_bytes(const GemmPart& part) {
  return round_up(part.item_rows, kGemmPackRows) * part.item_columns * 4;
}
GLM5_INLINE i64 gemm_scratch_bytes(const GemmPart& part) {
  return gemm_total_bytes(part) + kGemmPanelBytes + kGemmRowBytes + kGemmStageBytes;
}
GLM5_INLINE i64 gemm_workspace_size(const GemmPart& part, i64 threads) {
  return gemm_packed_bytes(part) + threads * gemm_scratch_bytes(part) + 64;
}

// Where an item lies: tiles of columns follow one another for the same rows.
struct GemmItem {
  i64 batch, first_row, rows, first_column, columns;

  GLM5_INLINE GemmItem(const GemmPart& part, i64 item) {
    const i64 tiles = ceil_div(part.n, part.item_columns), row_blocks = ceil_div(part.rows, part.item_rows);
    const i64 row = item / tiles % row_blocks * part.item_rows;
    batch = part.first_batch + item / tiles / row_blocks;
    first_row = part.first_row + row;
    rows = smaller(part.item_rows, part.rows - row);
    first_column = item % tiles * part.item_columns;
    columns = smaller(part.item_columns, part.n - first_column);
  }
};

// The workspace of one part, seen by one thread.
struct GemmWorkspace {
  u8* packed;
  f32* totals;
  f32* panel;  // the decoded block of b
  f32* rows;   // a block of rows
  u8* stage;

  template <class Args>
  GLM5_INLINE GemmWorkspace(const GemmTask<Args>& task, i64 thread) {
    packed = task.packed;
    u8* own = task.scratch + thread * task.scratch_bytes;
    totals = reinterpret_cast<f32*>(own);
    own += gemm_total_bytes(task.part);
    panel = reinterpret_cast<f32*>(own);
    rows = reinterpret_cast<f32*>(own + kGemmPanelBytes);
    stage = own + kGemmPanelBytes + kGemmRowBytes;
  }
  GLM5_INLINE u8* packed_of(const GemmPart& part, i64 batch) const {
    return packed + (batch - part.first_batch) * part.packed_bytes();
  }
};

// ---- How every kernel but AMX's walks through its items ----
//
// A Kernel knows its floats (use_floats), how to bring rows of a to f32 (pack: `rows` rows x 128 k, zero beyond k) and
// where these are (rows_at), how to multiply them with a panel of columns (multiply_panel), and where the totals go
// (store). Totals: [panel][row][Kernel::kPanel].

// `count` stretches of memory, `stride` bytes apart.
struct Stretches {
  const u8* data;
  i64 bytes, stride, count;
};

// Asks for one of `shares` equal shares of them, into the L2 cache.
GLM5_INLINE void prefetch_share(const Stretches& stretches, i64 share, i64 shares) {
  for (i64 i = stretches.count * share / shares; i < stretches.count * (share + 1) / shares; ++i) {
    for (i64 byte = 0; byte < stretches.bytes; byte += 64)
      __builtin_prefetch(stretches.data + i * stretches.stride + byte, 0, 2);
  }
}

// Columns from `left` to `right` for all k.
template <class Kernel, class Args>
GLM5_INLINE void multiply_columns(const GemmTask<Args>& task, const GemmItem& item, const GemmWorkspace& workspace,
                                  i64 left, i64 right) {
  const GemmPart& part = task.part;
  const f32* a = reinterpret_cast<const f32*>(workspace.packed_of(part, item.batch));
  for (i64 block = 0; block < part.blocks(); ++block) {
    Stretches next{};
    if (!part.is_packed) {
      Kernel::pack(task.args, item.batch, item.first_row, item.rows, block, workspace.rows);
      a = workspace.rows;
      // The next block comes while this one is used. After the last: the next item is likely to have the same rows.
      next = Kernel::rows_at(task.args, item, (block + 1) % part.blocks());
    }
    for (i64 j = left; j < right; j += Kernel::kPanel) {
      prefetch_share(next, (j - left) / Kernel::kPanel, ceil_div(right - left, Kernel::kPanel));
      Kernel::multiply_panel(task.args, item, block, a, j, workspace, workspace.totals + j * item.rows);
    }
    if (part.is_packed) a += part.rows * kGemmBlock;
  }
}

template <class Kernel, class Args>
GLM5_INLINE void multiply_items(const GemmTask<Args>& task, i64 begin, i64 end, i64 thread) {
  const FloatState before = Kernel::use_floats();
  const GemmWorkspace workspace(task, thread);
  for (i64 i = begin; i < end; ++i) {
    const GemmItem item(task.part, i);
    for (i64 t = 0; t < item.rows * round_up(item.columns, Kernel::kPanel); ++t) workspace.totals[t] = 0.0f;
    const i64 width = task.part.is_packed ? Kernel::kPanel : item.columns;
    for (i64 left = 0; left < item.columns; left += width)
      multiply_columns<Kernel>(task, item, workspace, left, smaller(left + width, item.columns));
    Kernel::store(task.args, item, workspace.totals);
  }
  restore_floats(before);
}

// All rows of a part beforehand; an item is a block of one matrix.
template <class Kernel, class Args>
GLM5_INLINE void pack_items(const GemmTask<Args>& task, i64 begin, i64 end) {
  const FloatState before = Kernel::use_floats();
  const GemmPart& part = task.part;
  const GemmWorkspace workspace(task, 0);
  for (i64 i = begin; i < end; ++i) {
    const i64 batch = part.first_batch + i / part.blocks(), block = i % part.blocks();
    f32* packed = reinterpret_cast<f32*>(workspace.packed_of(part, batch));
    Kernel::pack(task.args, batch, part.first_row, part.rows, block, packed + block * part.rows * kGemmBlock);
  }
  restore_floats(before);
}

// ---- The tree spelled out, for the generic kernels ----

// A step: (chain over even k) + (chain over odd k).
GLM5_INLINE f32 multiply_step(const f32* a, const f32* b) {
  f32 even = 0.0f, odd = 0.0f;
  for (i64 k = 0; k < kGemmStep; k += 2) {
    even = __builtin_fmaf(a[k], b[k], even);
    odd = __builtin_fmaf(a[k + 1], b[k + 1], odd);
  }
  return even + odd;
}

// out = total, or out + total, rounded to the type of out; `at` is its place.
template <int Rank, class... Index>
GLM5_INLINE void store_total(const FloatTensor<Rank>& out, f32 total, bool accumulate, Index... at) {
  if (out.dtype == Float::f32) {
    f32* value = out.template as<f32>().at(at...);
    *value = accumulate ? *value + total : total;
  } else {
    bf16* value = out.template as<bf16>().at(at...);
    *value = to_bf16(accumulate ? to_f32(*value) + total : total);
  }
}

}  // namespace glm5::cpu
