// gemm with AVX-512. a comes packed as rows of f32 from the AVX2 file; an item brings 128 k of 32 columns of b into the
// L1 cache as f32 (16 KiB, transposed where b's unit stride runs along k) and uses them for all its rows. bf16 follows
// the tree of AMX, six rows at a time (an even and an odd chain for each result); f32 has one chain, twelve rows at a
// time.
#include "cpu/avx512.h"
#include "cpu/float_environment.h"
#include "ops/gemm/gemm.h"

namespace glm5::avx512 {
namespace {

// Below this many rows an item finishes 32 columns for all k before it takes the next 32, so that few streams of b are
// open at a time; from it on the rows are too many to be read twice.
constexpr i64 kFewRows = 32;

GLM5_INLINE void prefetch(const f32* line) { _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0); }

// total += step, for Rows x 32 results and the steps of one block.
template <int Rows>
GLM5_INLINE void add_steps(const f32* a, const f32* panel, i64 k_end, f32* totals) {
#pragma GCC unroll 1
  for (i64 k = 0; k < k_end; k += cpu::kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
#pragma GCC unroll 16
    for (int line = 0; line < 2 * Rows; ++line) prefetch(a + Rows * (cpu::kGemmBlock + k) + line * 16);
    __m512 step[Rows][2];
    multiply_step<Rows>(a + k, panel + k * kPanel, step);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      f32* total = totals + r * cpu::kGemmTile;
      _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), step[r][0]));
      _mm512_store_ps(total + 16, _mm512_add_ps(_mm512_load_ps(total + 16), step[r][1]));
    }
  }
}

// total += part.
template <int Rows>
GLM5_INLINE void add_part(const f32* a, const f32* panel, i64 k_end, f32* totals) {
  __m512 part[Rows][2];
  multiply_chain<Rows>(a, panel, round_up(k_end, 8), part);
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    f32* total = totals + r * cpu::kGemmTile;
    _mm512_store_ps(total, _mm512_add_ps(_mm512_load_ps(total), part[r][0]));
    _mm512_store_ps(total + 16, _mm512_add_ps(_mm512_load_ps(total + 16), part[r][1]));
  }
}

// All rows of the item against one panel.
void add_panel_bf16(const f32* a, i64 rows, const f32* panel, i64 k_end, f32* totals) {
  i64 i = 0;
  for (; i + 6 <= rows; i += 6) add_steps<6>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i + 3 <= rows; i += 3) add_steps<3>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i < rows; ++i) add_steps<1>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
}
void add_panel_f32(const f32* a, i64 rows, const f32* panel, i64 k_end, f32* totals) {
  i64 i = 0;
  for (; i + 12 <= rows; i += 12) add_part<12>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i + 4 <= rows; i += 4) add_part<4>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
  for (; i < rows; ++i) add_part<1>(a + i * cpu::kGemmBlock, panel, k_end, totals + i * cpu::kGemmTile);
}

template <class T>
GLM5_INLINE void store_item(const GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
  const Tensor<T, 3> out = args.out.as<T>();
  for (i64 i = 0; i < item.rows; ++i)
    avx2::store_row(out.at(0, item.first_row + i, item.first_column), totals + i * cpu::kGemmTile, item.columns,
                    args.accumulate);
}

template <class T>
void multiply_item(const GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[1], k = args.a.shape[2];
  const Tensor<const T, 3> b = args.b.as<const T>();
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const i64 width = item.rows < kFewRows ? kPanel : cpu::kGemmTile;
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; i += 16) _mm512_store_ps(workspace.totals + i, _mm512_setzero_ps());
  for (i64 left = 0; left < item.columns; left += width) {
    const i64 right = smaller(left + width, item.columns);
    for (i64 block = 0; block < ceil_div(k, cpu::kGemmBlock); ++block) {
      const i64 first_k = block * cpu::kGemmBlock, k_end = smaller(cpu::kGemmBlock, k - first_k);
      const f32* a = packed.at(item.first_row, block);
      for (i64 j = left; j < right; j += kPanel) {
        avx2::pack(workspace.panel, kPanel, b.at(0, item.first_column + j, first_k), b.stride[2], b.stride[1], k_end,
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

}  // namespace

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

}  // namespace glm5::avx512
