// fp8_gemm with AVX2. Packing decodes rows of a to f32. An item then takes its 64 columns of b block by block: 128 k of
// 16 columns are transposed as bytes and decoded to f16 (4 KiB, which stay in the L1 cache), then used for all rows of
// the item, three rows at a time. For few rows f16 becomes f32 as it is loaded: vcvtph2ps from memory runs beside the
// multiply-adds (on Zen 3 two a cycle; from a register only one). For many rows the panel is widened to f32 first.
#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::avx2 {
namespace {

// Decoded b is 2^8 too small (f16_of_e4m3), and so is a before this factor: products come out right, since powers of
// two do not round here.
constexpr f32 kPackScale = 65536.0f;

// Below this many rows an item finishes 16 columns for all k before it takes the next 16, so that few streams of b are
// open at a time; from it on the rows are too many to be read four times.
constexpr i64 kFewRows = 32;
// From here on the panel is widened: 5 % faster for 256 rows on Zen 3, 10 % slower for 16.
constexpr i64 kManyRows = 48;

GLM5_INLINE const __m256i* vector_at(const u8* bytes) { return reinterpret_cast<const __m256i*>(bytes); }

// A panel: 128 k of 16 columns as f16. Where the transposition leaves them: vectors of 8 columns, in the order
// [32 k][16 k: j][columns 0..7: j, j + 16; columns 8..15: j, j + 16].

GLM5_INLINE void store_halves(u16* to, __m256i halves) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), halves); }
GLM5_INLINE __m256 load_halves(const u16* from) {
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from)));
}

// 16 columns x 32 k of e4m3.
template <bool WithNan>
GLM5_INLINE void decode_step(__m256i (&x)[16], u16* panel) {
  transpose_16x16_bytes(x);
  const __m256i zero = _mm256_setzero_si256();
#pragma GCC unroll 16
  for (int j = 0; j < 16; ++j) {
    __m256i left = f16_of_e4m3(_mm256_unpacklo_epi8(zero, x[j])), right = f16_of_e4m3(_mm256_unpackhi_epi8(zero, x[j]));
    if constexpr (WithNan) {
      left = f16_nan(left);
      right = f16_nan(right);
    }
    store_halves(panel + j * 32, left);
    store_halves(panel + j * 32 + 16, right);
  }
}

[[gnu::noinline]] void decode_panel_with_nan(const u8* columns, i64 stride, u16* panel) {
  for (i64 k = 0; k < cpu::kGemmBlock; k += 32) {
    __m256i x[16];
    for (int j = 0; j < 16; ++j) x[j] = _mm256_loadu_si256(vector_at(columns + j * stride + k));
    decode_step<true>(x, panel + k * kPanel);
  }
}

// 16 columns x 128 k. NaN is rare: it is looked for on the way and decoded again where found.
GLM5_INLINE void decode_panel(const u8* columns, i64 stride, const u8* later, u16* panel) {
  __m256i largest = _mm256_setzero_si256();  // of the doubled bytes: 0xfe is NaN
  for (i64 k = 0; k < cpu::kGemmBlock; k += 32) {
    __m256i x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      x[j] = _mm256_loadu_si256(vector_at(columns + j * stride + k));
      largest = _mm256_max_epu8(largest, _mm256_add_epi8(x[j], x[j]));
      if ((k & 32) == 0) _mm_prefetch(reinterpret_cast<const char*>(later + j * stride + k), _MM_HINT_T0);
    }
    decode_step<false>(x, panel + k * kPanel);
  }
  const __m256i is_nan = _mm256_cmpeq_epi8(largest, _mm256_set1_epi8(static_cast<i8>(0xfe)));
  if (_mm256_movemask_epi8(is_nan)) decode_panel_with_nan(columns, stride, panel);
}

// Columns first_column .. +16 of block g, zero beyond n and k.
GLM5_INLINE void load_panel(const Fp8GemmArgs& args, i64 first_column, i64 g, u8* stage, u16* panel) {
  const i64 n = args.b.shape[0], k = args.b.shape[1], first_k = g * kFp8Group;
  const u8* columns = reinterpret_cast<const u8*>(args.b.at(first_column, first_k));
  if (first_column + kPanel <= n && first_k + kFp8Group <= k) {
    // What comes four groups later: of the same columns, or of the next 16.
    const i64 later = first_k + 4 * kFp8Group, over = later - round_up(k, kFp8Group);
    const u8* ahead = columns + (over < 0 ? 4 * kFp8Group : kPanel * args.b.stride[0] + over - first_k);
    return decode_panel(columns, args.b.stride[0], ahead, panel);
  }
  const i64 valid_columns = smaller(kPanel, n - first_column), valid_k = smaller(kFp8Group, k - first_k);
  for (i64 j = 0; j < kPanel; ++j) {
    for (i64 i = 0; i < kFp8Group; ++i)
      stage[j * kFp8Group + i] = j < valid_columns && i < valid_k ? columns[j * args.b.stride[0] + i] : 0;
  }
  decode_panel(stage, kFp8Group, stage, panel);
}

// The b scales of 16 columns in block g.
GLM5_INLINE void load_scales(const Fp8GemmArgs& args, i64 first_column, i64 g, f32 (&scales)[kPanel]) {
  const i64 valid = smaller(kPanel, args.b.shape[0] - first_column);
  for (i64 j = 0; j < kPanel; ++j) {
    const i64 column = first_column + (j < valid ? j : 0);
    scales[j] = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
  }
}

// A panel in f32, [k][16].
GLM5_INLINE void widen_panel(const u16* panel, f32* to) {
  for (i64 step = 0; step < cpu::kGemmBlock; step += cpu::kGemmStep) {
#pragma GCC unroll 4
    for (i64 j = 0; j < 16; ++j) {
      const u16* from = panel + step * kPanel + j * 32;
      f32* row = to + (step + j) * kPanel;
      _mm256_store_ps(row, load_halves(from));
      _mm256_store_ps(row + 8, load_halves(from + 16));
      _mm256_store_ps(row + 16 * kPanel, load_halves(from + 8));
      _mm256_store_ps(row + 16 * kPanel + 8, load_halves(from + 24));
    }
  }
}

// The same step of the tree for a panel of f16.
using avx2::multiply_step;
template <int Rows>
GLM5_INLINE void multiply_step(const f32* a, const u16* panel, __m256 (&sum)[Rows][2]) {
  __m256 even[Rows][2], odd[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) even[r][0] = even[r][1] = odd[r][0] = odd[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 1
  for (i64 upper = 0; upper < 2; ++upper) {
#pragma GCC unroll 4
    for (i64 j = 0; j < 16; j += 2) {
      const u16* at = panel + j * 32 + upper * 8;
      const f32* x = a + upper * 16 + j;
      const __m256 even_left = load_halves(at), even_right = load_halves(at + 16);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256 row = _mm256_broadcast_ss(x + r * cpu::kGemmBlock);
        even[r][0] = _mm256_fmadd_ps(row, even_left, even[r][0]);
        even[r][1] = _mm256_fmadd_ps(row, even_right, even[r][1]);
      }
      const __m256 odd_left = load_halves(at + 32), odd_right = load_halves(at + 48);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const __m256 row = _mm256_broadcast_ss(x + r * cpu::kGemmBlock + 1);
        odd[r][0] = _mm256_fmadd_ps(row, odd_left, odd[r][0]);
        odd[r][1] = _mm256_fmadd_ps(row, odd_right, odd[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = _mm256_add_ps(even[r][0], odd[r][0]);
    sum[r][1] = _mm256_add_ps(even[r][1], odd[r][1]);
  }
}

// total <- fma(scale, part(g), total) for Rows x 16 results.
template <int Rows, class T>
GLM5_INLINE void multiply_block(const f32* a, const T* panel, const f32* const (&a_scales)[Rows], __m256 left_scale,
                                __m256 right_scale, f32* totals) {
  __m256 part[Rows][2], step[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) part[r][0] = part[r][1] = _mm256_setzero_ps();
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += cpu::kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
    const f32* next = a + Rows * (cpu::kGemmBlock + k);
#pragma GCC unroll 8
    for (int line = 0; line < 2 * Rows; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(next + line * 16), _MM_HINT_T0);
    multiply_step<Rows>(a + k, panel + k * kPanel, step);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      part[r][0] = _mm256_add_ps(part[r][0], step[r][0]);
      part[r][1] = _mm256_add_ps(part[r][1], step[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    f32* total = totals + r * cpu::kGemmTile;
    const __m256 a_scale = _mm256_broadcast_ss(a_scales[r]);
    _mm256_store_ps(total, _mm256_fmadd_ps(_mm256_mul_ps(a_scale, left_scale), part[r][0], _mm256_load_ps(total)));
    _mm256_store_ps(total + 8,
                    _mm256_fmadd_ps(_mm256_mul_ps(a_scale, right_scale), part[r][1], _mm256_load_ps(total + 8)));
  }
}

// All rows of the item against one panel.
template <class T>
void multiply_panel(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* a, i64 g, const T* panel,
                    i64 first_column, f32* totals) {
  alignas(32) f32 scales[kPanel];
  load_scales(args, first_column, g, scales);
  const __m256 left_scale = _mm256_load_ps(scales), right_scale = _mm256_load_ps(scales + 8);
  const f32* a_scale = args.a_scales.at(item.first_row, g);
  const i64 scale_stride = args.a_scales.stride[0];
  i64 i = 0;
  for (; i + 3 <= item.rows; i += 3) {
    const f32* const row_scales[] = {a_scale + i * scale_stride, a_scale + (i + 1) * scale_stride,
                                     a_scale + (i + 2) * scale_stride};
    multiply_block<3>(a + i * cpu::kGemmBlock, panel, row_scales, left_scale, right_scale, totals + i * cpu::kGemmTile);
  }
  if (item.rows - i == 2) {
    const f32* const row_scales[] = {a_scale + i * scale_stride, a_scale + (i + 1) * scale_stride};
    multiply_block<2>(a + i * cpu::kGemmBlock, panel, row_scales, left_scale, right_scale, totals + i * cpu::kGemmTile);
  } else if (item.rows - i == 1) {
    const f32* const row_scales[] = {a_scale + i * scale_stride};
    multiply_block<1>(a + i * cpu::kGemmBlock, panel, row_scales, left_scale, right_scale, totals + i * cpu::kGemmTile);
  }
}

template <class T>
GLM5_INLINE void store_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
  const Tensor<T, 2> out = args.out.as<T>();
  for (i64 i = 0; i < item.rows; ++i)
    store_row(out.at(item.first_row + i, item.first_column), totals + i * cpu::kGemmTile, item.columns,
              args.accumulate);
}

void multiply_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  u16* panel = reinterpret_cast<u16*>(workspace.panel);
  f32* wide_panel = workspace.panel + cpu::kGemmBlock * kPanel;  // beyond the f16 one
  const i64 width = item.rows < kFewRows ? kPanel : cpu::kGemmTile;
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; i += 8) _mm256_store_ps(workspace.totals + i, _mm256_setzero_ps());
  for (i64 left = 0; left < item.columns; left += width) {
    const i64 right = smaller(left + width, item.columns);
    for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
      const f32* a = packed.at(item.first_row, g);
      for (i64 j = left; j < right; j += kPanel) {
        const i64 column = item.first_column + j;
        load_panel(args, column, g, workspace.stage, panel);
        if (item.rows < kManyRows) {
          multiply_panel(args, item, a, g, panel, column, workspace.totals + j);
        } else {
          widen_panel(panel, wide_panel);
          multiply_panel(args, item, a, g, wide_panel, column, workspace.totals + j);
        }
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

void fp8_gemm_pack(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const __m256 scale = _mm256_set1_ps(kPackScale);
  for (i64 row = begin * cpu::kGemmPackRows; row < smaller(m, end * cpu::kGemmPackRows); ++row) {
    for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
      alignas(16) u8 stage[kFp8Group];
      const u8* values = reinterpret_cast<const u8*>(args.a.at(row, g * kFp8Group));
      const i64 valid = smaller(kFp8Group, k - g * kFp8Group);
      if (valid < kFp8Group) {
        for (i64 i = 0; i < kFp8Group; ++i) stage[i] = i < valid ? values[i] : 0;
        values = stage;
      }
      f32* to = packed.at(row, g);
      for (i64 i = 0; i < kFp8Group; i += 16) {
        const TwoF32x8 x = decode_e4m3x16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i)));
        _mm256_store_ps(to + i, _mm256_mul_ps(x.low, scale));
        _mm256_store_ps(to + i + 8, _mm256_mul_ps(x.high, scale));
      }
    }
  }
  cpu::restore_floats(before);
}

void fp8_gemm_multiply(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], n = args.b.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  for (i64 i = begin; i < end; ++i) multiply_item(args, {i, m, n, cpu::kGemmVectorRows}, workspace);
  cpu::restore_floats(before);
}

}  // namespace glm5::avx2
