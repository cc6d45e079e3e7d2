// fp8_gemm with AVX-512. The rows of a come packed as f32 from the AVX2 file. An item takes its 64 columns of b block
// by block: 128 k of 32 columns are transposed as bytes, decoded to f32 (16 KiB, which stay in the L1 cache) and used
// for all rows of the item, six rows at a time.
#include "cpu/avx512.h"
#include "cpu/float_environment.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::avx512 {
namespace {

// Below this many rows an item finishes 32 columns for all k before it takes the next 32, so that few streams of b are
// open at a time; from it on the rows are too many to be read twice.
constexpr i64 kFewRows = 32;

// 16 columns x 64 k of e4m3 to panel[k][16 of 32] in f32, divided by 256 as avx2::f16_of_e4m3 does it.
template <bool WithNan>
GLM5_INLINE void decode_half(__m512i (&x)[16], f32* panel) {
  transpose_16x16_bytes(x);
  const auto store = [&](__m128i bytes, i64 k) [[gnu::always_inline]] {
    // The sign fills the upper byte, then all bits move to where f16 has them but one copy of the sign.
    const __m256i moved = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    __m256i halves = _mm256_and_si256(moved, _mm256_set1_epi16(static_cast<i16>(0xbf80)));
    if constexpr (WithNan) halves = avx2::f16_nan(halves);
    _mm512_store_ps(panel + k * kPanel, _mm512_cvtph_ps(halves));
  };
#pragma GCC unroll 16
  for (int k = 0; k < 16; ++k) {
    store(_mm512_castsi512_si128(x[k]), k);
    store(_mm512_extracti32x4_epi32(x[k], 1), 16 + k);
    store(_mm512_extracti32x4_epi32(x[k], 2), 32 + k);
    store(_mm512_extracti32x4_epi32(x[k], 3), 48 + k);
  }
}

[[gnu::noinline]] void decode_columns_with_nan(const u8* columns, i64 stride, f32* panel) {
  for (i64 k = 0; k < cpu::kGemmBlock; k += 64) {
    __m512i x[16];
    for (int j = 0; j < 16; ++j) x[j] = _mm512_loadu_si512(columns + j * stride + k);
    decode_half<true>(x, panel + k * kPanel);
  }
}

// 16 columns x 128 k. NaN is rare: it is looked for on the way and decoded again where found.
GLM5_INLINE void decode_columns(const u8* columns, i64 stride, const u8* later, f32* panel) {
  __m512i largest = _mm512_setzero_si512();  // of the doubled bytes: 0xfe is NaN
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += 64) {
    __m512i x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      x[j] = _mm512_loadu_si512(columns + j * stride + k);
      largest = _mm512_max_epu8(largest, _mm512_add_epi8(x[j], x[j]));
      _mm_prefetch(reinterpret_cast<const char*>(later + j * stride + k), _MM_HINT_T0);
    }
    decode_half<false>(x, panel + k * kPanel);
  }
  if (_mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(static_cast<i8>(0xfe))))
    decode_columns_with_nan(columns, stride, panel);
}

// Columns first_column .. +32 of block g, zero beyond n and k.
GLM5_INLINE void load_panel(const Fp8GemmArgs& args, i64 first_column, i64 g, u8* stage, f32* panel) {
  const i64 n = args.b.shape[0], first_k = g * kFp8Group, valid_k = smaller(kFp8Group, args.b.shape[1] - first_k);
  // What comes four groups later: of the same columns, or of the next 32.
  const i64 over = first_k + 4 * kFp8Group - round_up(args.b.shape[1], kFp8Group);
  const i64 ahead = over < 0 ? 4 * kFp8Group : kPanel * args.b.stride[0] + over - first_k;
#pragma GCC unroll 1
  for (i64 left = 0; left < kPanel; left += 16) {
    const u8* columns = reinterpret_cast<const u8*>(args.b.at(first_column + left, first_k));
    const i64 valid_columns = n - first_column - left;
    if (valid_columns >= 16 && valid_k == kFp8Group) {
      decode_columns(columns, args.b.stride[0], columns + ahead, panel + left);
      continue;
    }
    for (i64 j = 0; j < 16; ++j) {
      for (i64 i = 0; i < kFp8Group; i += 64) {
        const __mmask64 live = j < valid_columns ? first_of_64(valid_k - i) : 0;
        const u8* from = live ? columns + j * args.b.stride[0] + i : stage;
        _mm512_storeu_si512(stage + j * kFp8Group + i, _mm512_maskz_loadu_epi8(live, from));
      }
    }
    decode_columns(stage, kFp8Group, stage, panel + left);
  }
}

// The b scales of 32 columns in block g.
GLM5_INLINE void load_scales(const Fp8GemmArgs& args, i64 first_column, i64 g, f32 (&scales)[kPanel]) {
  const i64 valid = smaller(kPanel, args.b.shape[0] - first_column);
  for (i64 j = 0; j < kPanel; ++j) {
    const i64 column = first_column + (j < valid ? j : 0);
    scales[j] = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
  }
}

struct Scales {
  const f32* rows;  // of a, at `stride`
  i64 stride;
  __m512 left, right;  // of b
};

// total <- fma(scale, part(g), total) for Rows x 32 results.
template <int Rows>
GLM5_INLINE void multiply_block(const f32* a, const f32* panel, const Scales& scales, i64 row, f32* totals) {
  __m512 part[Rows][2], step[Rows][2];
  a += row * cpu::kGemmBlock;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) part[r][0] = part[r][1] = _mm512_setzero_ps();
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += cpu::kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
    const f32* next = a + Rows * (cpu::kGemmBlock + k);
#pragma GCC unroll 16
    for (int line = 0; line < 2 * Rows; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(next + line * 16), _MM_HINT_T0);
    multiply_step<Rows>(a + k, panel + k * kPanel, step);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      part[r][0] = _mm512_add_ps(part[r][0], step[r][0]);
      part[r][1] = _mm512_add_ps(part[r][1], step[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    f32* total = totals + (row + r) * cpu::kGemmTile;
    const __m512 a_scale = _mm512_set1_ps(scales.rows[(row + r) * scales.stride]);
    _mm512_store_ps(total, _mm512_fmadd_ps(_mm512_mul_ps(a_scale, scales.left), part[r][0], _mm512_load_ps(total)));
    _mm512_store_ps(total + 16,
                    _mm512_fmadd_ps(_mm512_mul_ps(a_scale, scales.right), part[r][1], _mm512_load_ps(total + 16)));
  }
}

// All rows of the item against one panel.
void multiply_panel(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* a, i64 g, const f32* panel,
                    i64 first_column, f32* totals) {
  alignas(64) f32 columns[kPanel];
  load_scales(args, first_column, g, columns);
  const Scales scales{args.a_scales.at(item.first_row, g), args.a_scales.stride[0], _mm512_load_ps(columns),
                      _mm512_load_ps(columns + 16)};
  i64 i = 0;
  for (; i + 6 <= item.rows; i += 6) multiply_block<6>(a, panel, scales, i, totals);
  for (; i + 3 <= item.rows; i += 3) multiply_block<3>(a, panel, scales, i, totals);
  for (; i < item.rows; ++i) multiply_block<1>(a, panel, scales, i, totals);
}

template <class T>
GLM5_INLINE void store_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
  const Tensor<T, 2> out = args.out.as<T>();
  for (i64 i = 0; i < item.rows; ++i)
    avx2::store_row(out.at(item.first_row + i, item.first_column), totals + i * cpu::kGemmTile, item.columns,
                    args.accumulate);
}

void multiply_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const i64 width = item.rows < kFewRows ? kPanel : cpu::kGemmTile;
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; i += 16) _mm512_store_ps(workspace.totals + i, _mm512_setzero_ps());
  for (i64 left = 0; left < item.columns; left += width) {
    const i64 right = smaller(left + width, item.columns);
    for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
      const f32* a = packed.at(item.first_row, g);
      for (i64 j = left; j < right; j += kPanel) {
        load_panel(args, item.first_column + j, g, workspace.stage, workspace.panel);
        multiply_panel(args, item, a, g, workspace.panel, item.first_column + j, workspace.totals + j);
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

void fp8_gemm_multiply(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], n = args.b.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  for (i64 i = begin; i < end; ++i) multiply_item(args, {i, m, n, cpu::kGemmVectorRows}, workspace);
  cpu::restore_floats(before);
}

}  // namespace glm5::avx512
