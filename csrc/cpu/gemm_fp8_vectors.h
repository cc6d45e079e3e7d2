// Products with e4m3 weights and scales, with vectors of any width. An item brings 128 k of its rows of a into the L2
// cache as f32; panel after panel of b (two vectors of columns) is transposed as bytes, decoded into the L1 cache, and
// used for all rows of the item.
//
// A Decoder, from gemm_fp8_avx2.h or gemm_fp8_avx512.h, knows its vector of bytes and how 16 of them, k of 16 columns,
// become values of a panel.
#pragma once

#include "core/gemm_args.h"
#include "core/glm5.h"
#include "cpu/gemm_vectors.h"

namespace glm5::gemm_fp8_vectors {

// Decoded b is 2^8 too small (avx2::f16_of_e4m3), and so is a before this factor: products come out right, since powers
// of two do not round here.
constexpr f32 kPackScale = 65536.0f;
constexpr f32 kBf16PackScale = 256.0f;  // rows of bf16 are as large as they are; from 2^120 on they become infinite

template <class Decoder>
[[gnu::noinline]] static void decode_with_nan(const u8* columns, i64 stride, typename Decoder::Value* panel) {
  for (i64 k = 0; k < cpu::kGemmBlock; k += Decoder::kBytes) {
    typename Decoder::Bytes x[16];
    for (int j = 0; j < 16; ++j) x[j] = Decoder::load(columns + j * stride + k);
    Decoder::template decode<true>(x, panel + k * Decoder::kColumns);
  }
}

// 16 columns x 128 k. NaN is rare: it is looked for on the way and decoded again where found.
template <class Decoder>
GLM5_INLINE void decode_columns(const u8* columns, i64 stride, const u8* later, typename Decoder::Value* panel) {
  typename Decoder::Bytes largest = {};  // of the doubled bytes: 0xfe is NaN
  for (i64 k = 0; k < cpu::kGemmBlock; k += Decoder::kBytes) {
    typename Decoder::Bytes x[16];
#pragma GCC unroll 16
    for (int j = 0; j < 16; ++j) {
      x[j] = Decoder::load(columns + j * stride + k);
      largest = Decoder::larger_doubled(largest, x[j]);
      if (k % 64 == 0) __builtin_prefetch(later + j * stride + k);
    }
    Decoder::template decode<false>(x, panel + k * Decoder::kColumns);
  }
  if (Decoder::has_nan(largest)) decode_with_nan<Decoder>(columns, stride, panel);
}

// Decodes a panel, zero beyond n and k.
template <class Decoder, class Args>
GLM5_INLINE void load_panel(const Args& args, i64 first_column, i64 g, u8* stage, typename Decoder::Value* panel) {
  const i64 n = args.b.shape[0], k = args.b.shape[1], stride = args.b.stride[0];
  const i64 first_k = g * kFp8Group, valid_k = smaller(kFp8Group, k - first_k);
  // What comes four groups later: of the same columns, or of the next panel's.
  const i64 over = first_k + 4 * kFp8Group - round_up(k, kFp8Group);
  const i64 ahead = over < 0 ? 4 * kFp8Group : Decoder::kColumns * stride + over - first_k;
#pragma GCC unroll 1
  for (i64 left = 0; left < Decoder::kColumns; left += 16) {
    const u8* columns = reinterpret_cast<const u8*>(args.b.at(first_column + left, first_k));
    const i64 valid_columns = n - first_column - left;
    if (valid_columns >= 16 && valid_k == kFp8Group) {
      decode_columns<Decoder>(columns, stride, columns + ahead, panel + left);
      continue;
    }
    for (i64 j = 0; j < 16; ++j) {
      for (i64 i = 0; i < kFp8Group; ++i)
        stage[j * kFp8Group + i] = j < valid_columns && i < valid_k ? columns[j * stride + i] : 0;
    }
    decode_columns<Decoder>(stage, kFp8Group, stage, panel + left);
  }
}

// What a block's parts are multiplied with: the scales of its rows, at `stride`, and of the panel's columns.
template <class Lanes>
struct Scales {
  const f32* rows;
  i64 stride;
  typename Lanes::F32 columns[2];
};

template <class Lanes, class Args>
GLM5_INLINE Scales<Lanes> load_scales(const Args& args, i64 first_row, i64 first_column, i64 g) {
  constexpr i64 kColumns = 2 * Lanes::kCount;
  alignas(64) f32 scales[kColumns];
  const i64 valid = smaller(kColumns, args.b.shape[0] - first_column);
  for (i64 j = 0; j < kColumns; ++j) {
    const i64 column = first_column + (j < valid ? j : 0);
    scales[j] = *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, g);
  }
  return {args.a_scales.at(first_row, g),
          args.a_scales.stride[0],
          {Lanes::load(scales), Lanes::load(scales + Lanes::kCount)}};
}

// total <- fma(scale, part(g), total) for Rows x 2 vectors.
template <class Lanes, int Rows, class T>
GLM5_INLINE void multiply_block(const f32* a, const T* panel, const Scales<Lanes>& scales, i64 row, f32* totals) {
  typename Lanes::F32 part[Rows][2], step[Rows][2];
  a += row * cpu::kGemmBlock;
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) part[r][0] = part[r][1] = Lanes::zero();
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += cpu::kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
    cpu::prefetch_lines<2 * Rows>(a + Rows * (cpu::kGemmBlock + k));
    cpu::multiply_step<Lanes, Rows>(a + k, panel + k * 2 * Lanes::kCount, step);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      part[r][0] += step[r][0];
      part[r][1] += step[r][1];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 2 * Rows; ++i) {
    f32* total = totals + 2 * row * Lanes::kCount + i * Lanes::kCount;
    const auto scale = Lanes::broadcast(scales.rows[(row + i / 2) * scales.stride]) * scales.columns[i % 2];
    Lanes::store(total, Lanes::fma(scale, part[i / 2][i % 2], Lanes::load(total)));
  }
}

// All rows of an item against one panel.
template <class Lanes, class T>
static void add_panel(const f32* a, i64 rows, const T* panel, const Scales<Lanes>& scales, f32* totals) {
  cpu::for_row_blocks<Lanes::kStepRows>(rows, [&]<int Rows>(cpu::RowCount<Rows>, i64 i) [[gnu::always_inline]] {
    multiply_block<Lanes, Rows>(a, panel, scales, i, totals);
  });
}

// 128 k of rows of a as f32, zero beyond k.
GLM5_INLINE void pack_rows(const Tensor<const e4m3, 2>& a, i64 row, i64 rows, i64 g, f32* to) {
  const __m256 scale = _mm256_set1_ps(kPackScale);
  const i64 valid = smaller(kFp8Group, a.shape[1] - g * kFp8Group);
  for (i64 i = 0; i < rows; ++i, to += kFp8Group) {
    alignas(16) u8 stage[kFp8Group];
    const u8* values = reinterpret_cast<const u8*>(a.at(row + i, g * kFp8Group));
    if (valid < kFp8Group) {
      for (i64 k = 0; k < kFp8Group; ++k) stage[k] = k < valid ? values[k] : 0;
      values = stage;
    }
    for (i64 k = 0; k < kFp8Group; k += 16) {
      const avx2::TwoF32x8 x = avx2::decode_e4m3x16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + k)));
      _mm256_store_ps(to + k, _mm256_mul_ps(x.low, scale));
      _mm256_store_ps(to + k + 8, _mm256_mul_ps(x.high, scale));
    }
  }
}
GLM5_INLINE void pack_rows(const Tensor<const bf16, 2>& a, i64 row, i64 rows, i64 g, f32* to) {
  const __m256 scale = _mm256_set1_ps(kBf16PackScale);
  const i64 valid = smaller(kFp8Group, a.shape[1] - g * kFp8Group);
  avx2::pack(to, kFp8Group, a.at(row, g * kFp8Group), a.stride[0], 1, rows, valid, rows, kFp8Group, 0);
  for (i64 i = 0; i < rows * kFp8Group; i += 8) _mm256_store_ps(to + i, _mm256_mul_ps(_mm256_load_ps(to + i), scale));
}

// As cpu/gemm.h wants it; A is the type of the rows.
template <class Lanes, class Decoder, class A>
struct Kernel {
  using Args = ScaledGemmArgs<A>;
  static constexpr i64 kPanel = 2 * Lanes::kCount;
  static_assert(Decoder::kColumns == kPanel);

  // Subnormal numbers count as zero in the AMX unit; e4m3 has none that are subnormal in bf16.
  GLM5_INLINE static cpu::FloatState use_floats() {
    return sizeof(A) == 2 ? cpu::use_flushing_floats() : cpu::use_default_floats();
  }

  GLM5_INLINE static void pack(const Args& args, i64, i64 row, i64 rows, i64 g, f32* to) {
    pack_rows(args.a, row, rows, g, to);
  }

  GLM5_INLINE static cpu::Stretches rows_at(const Args& args, const cpu::GemmItem& item, i64 g) {
    const i64 valid = smaller(kFp8Group, args.a.shape[1] - g * kFp8Group), size = sizeof(A);
    return {reinterpret_cast<const u8*>(args.a.at(item.first_row, g * kFp8Group)), valid * size,
            args.a.stride[0] * size, item.rows};
  }

  GLM5_INLINE static void multiply_panel(const Args& args, const cpu::GemmItem& item, i64 g, const f32* a, i64 j,
                                         const cpu::GemmWorkspace& workspace, f32* totals) {
    const i64 column = item.first_column + j;
    const Scales<Lanes> scales = load_scales<Lanes>(args, item.first_row, column, g);
    auto* panel = reinterpret_cast<typename Decoder::Value*>(workspace.panel);
    load_panel<Decoder>(args, column, g, workspace.stage, panel);
    if (item.rows < Decoder::kWideRows) {
      add_panel<Lanes>(a, item.rows, panel, scales, totals);
    } else {
      add_panel<Lanes>(a, item.rows, Decoder::widen(panel), scales, totals);
    }
  }

  GLM5_INLINE static void store(const Args& args, const cpu::GemmItem& item, const f32* totals) {
    avx2::store_item<kPanel>(args.out, item, totals, args.accumulate);
  }
};

}  // namespace glm5::gemm_fp8_vectors
