// gemm with AVX2. a is packed as rows of f32 once; an item brings 128 k of 16 columns of b into the L1 cache as f32
// (8 KiB, transposed where b's unit stride runs along k) and uses them for all its rows. bf16 follows the tree of AMX,
// three rows at a time (an even and an odd chain for each result); f32 has one chain, six rows at a time.
#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/gemm/gemm.h"

namespace glm5::avx2 {
namespace {

// Below this many rows an item finishes 16 columns for all k before it takes the next 16, so that few streams of b are
// open at a time; from it on the rows are too many to be read four times.
constexpr i64 kFewRows = 32;

GLM5_INLINE void prefetch(const f32* line) { _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0); }

// total += step, for Rows x 16 results and the steps of one block.
template <int Rows>
GLM5_INLINE void add_steps(const f32* a, const f32* panel, i64 k_end, f32* totals) {
#pragma GCC unroll 1
  for (i64 k = 0; k < k_end; k += cpu::kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
#pragma GCC unroll 8
    for (int line = 0; line < 2 * Rows; ++line) prefetch(a + Rows * (cpu::kGemmBlock + k) + line * 16);
    __m256 step[Rows][2];
    multiply_step<Rows>(a + k, panel + k * kPanel, step);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      f32* total = totals + r * cpu::kGemmTile;
      _mm256_store_ps(total, _mm256_add_ps(_mm256_load_ps(total), step[r][0]));
      _mm256_store_ps(total + 8, _mm256_add_ps(_mm256_load_ps(total + 8), step[r][1]));
    }
  }
}

// total += part.
template <int Rows>
GLM5_INLINE void add_part(const f32* a, const f32* panel, i64 k_end, f32* totals) {
  __m256 part[Rows][2];
  multiply_chain<Rows>(a, panel, round_up(k_end, 8), part);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    f32* total = totals + r * cpu::kGemmTile;
    _mm256_store_ps(total, _mm256_add_ps(_mm256_load_ps(total), part[r][0]));
    _mm256_store_ps(total + 8, _mm256_add_ps(_mm256_load_ps(total + 8), part[r][1]));
  }
}

// All rows of the item against one panel.
void add_panel_bf16(const f32* a, i64 rows, const f32* panel, i64 k_end, f32* totals) {
  i64 i = 0;
  for (; i + 3 <= rows; i += 3) add_steps<3>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  if (rows - i == 2) add_steps<2>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  if (rows - i == 1) add_steps<1>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
}
void add_panel_f32(const f32* a, i64 rows, const f32* panel, i64 k_end, f32* totals) {
  i64 i = 0;
  for (; i + 6 <= rows; i += 6) add_part<6>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i + 3 <= rows; i += 3) add_part<3>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i < rows; ++i) add_part<1>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
}

template <class T>
GLM5_INLINE void store_item(const GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
  const Tensor<T, 3> out = args.out.as<T>();
  for (i64 i = 0; i < item.rows; ++i)
    store_row(out.at(0, item.first_row + i, item.first_column), totals + i * cpu::kGemmTile, item.columns,
              args.accumulate);
}

template <class T>
void multiply_item(const GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[1], k = args.a.shape[2];
  const Tensor<const T, 3> b = args.b.as<const T>();
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const i64 width = item.rows < kFewRows ? kPanel : cpu::kGemmTile;
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; i += 8) _mm256_store_ps(workspace.totals + i, _mm256_setzero_ps());
  for (i64 left = 0; left < item.columns; left += width) {
    const i64 right = smaller(left + width, item.columns);
    for (i64 block = 0; block < ceil_div(k, cpu::kGemmBlock); ++block) {
      const i64 first_k = block * cpu::kGemmBlock, k_end = smaller(cpu::kGemmBlock, k - first_k);
      const f32* a = packed.at(item.first_row, block);
      for (i64 j = left; j < right; j += kPanel) {
        pack(workspace.panel, kPanel, b.at(0, item.first_column + j, first_k), b.stride[2], b.stride[1], k_end,
             smaller(kPanel, item.columns - j), round_up(k_end, cpu::kGemmStep), kPanel);
        const auto add_panel = sizeof(T) == 4 ? add_panel_f32 : add_panel_bf16;
        add_panel(a, item.rows, workspace.panel, k_end, workspace.totals + j);
      }
    }
  }
  if (args.out.dtype == Float::f32) {
    store_item<f32>(args, item, workspace.totals);
  } else {
    store_item<bf16>(args, item, workspace.totals);
  }
}

template <class T>
void pack_rows(const GemmArgs& args, i64 begin, i64 end, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[1], k = args.a.shape[2];
  const Tensor<const T, 3> a = args.a.as<const T>();
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  for (i64 item = begin; item < end; ++item) {
    const i64 row = item * cpu::kGemmPackRows, rows = smaller(cpu::kGemmPackRows, m - row);
    for (i64 block = 0; block < ceil_div(k, cpu::kGemmBlock); ++block) {
      const i64 first_k = block * cpu::kGemmBlock, valid = smaller(cpu::kGemmBlock, k - first_k);
      pack(packed.at(row, block), cpu::kGemmBlock, a.at(0, row, first_k), a.stride[1], a.stride[2], rows, valid, rows,
           round_up(valid, cpu::kGemmStep));
    }
  }
}

}  // namespace

void gemm_pack(const GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::GemmWorkspace workspace(args.workspace, args.a.shape[1], args.a.shape[2], thread);
  if (args.a.dtype == Float::f32) {
    pack_rows<f32>(args, begin, end, workspace);
  } else {
    pack_rows<bf16>(args, begin, end, workspace);
  }
}

void gemm_multiply(const GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const bool in_f32 = args.a.dtype == Float::f32;
  const cpu::FloatState before = in_f32 ? cpu::use_default_floats() : cpu::use_flushing_floats();
  const i64 m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  for (i64 i = begin; i < end; ++i) {
    const cpu::GemmItem item(i, m, n, cpu::kGemmVectorRows);
    if (in_f32) {
      multiply_item<f32>(args, item, workspace);
    } else {
      multiply_item<bf16>(args, item, workspace);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::avx2
