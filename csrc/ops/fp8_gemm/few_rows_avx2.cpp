// fp8_gemm with AVX2 for up to 6 rows of a, where decoding b is the work: b is not transposed.
//
// A group of 128 k of one column of b is four steps of 16 even and 16 odd k: eight chains of the summation tree, one in
// each lane. The bytes need two interleavings to get there (pair i of all four steps side by side), 8 shuffles for 128
// weights; a is packed in the same order. At the end of a group the lanes of four columns are added as the tree says.
#include "cpu/avx2.h"
#include "cpu/float_environment.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::avx2 {
namespace {

constexpr f32 kPackScale = 65536.0f;  // as in avx2.cpp: b is decoded 2^8 too small, and so is a before this
constexpr i64 kPairs = 16;            // of a step
constexpr i64 kColumns = 4;           // whose lanes are added together

GLM5_INLINE __m256i load_bytes(const u8* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// 128 e4m3 as f16: pairs i and i + 8 of the four steps are in the halves of halves[i], as [step 0 even, odd, step 1 ...].
GLM5_INLINE void interleave_steps(const __m256i (&steps)[4], __m256i (&halves)[8]) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i first[] = {_mm256_unpacklo_epi16(steps[0], steps[1]), _mm256_unpackhi_epi16(steps[0], steps[1])};
  const __m256i last[] = {_mm256_unpacklo_epi16(steps[2], steps[3]), _mm256_unpackhi_epi16(steps[2], steps[3])};
#pragma GCC unroll 2
  for (int q = 0; q < 2; ++q) {
    const __m256i low = _mm256_unpacklo_epi32(first[q], last[q]), high = _mm256_unpackhi_epi32(first[q], last[q]);
    halves[4 * q + 0] = f16_of_e4m3(_mm256_unpacklo_epi8(zero, low));
    halves[4 * q + 1] = f16_of_e4m3(_mm256_unpackhi_epi8(zero, low));
    halves[4 * q + 2] = f16_of_e4m3(_mm256_unpacklo_epi8(zero, high));
    halves[4 * q + 3] = f16_of_e4m3(_mm256_unpackhi_epi8(zero, high));
  }
}

GLM5_INLINE bool has_nan(const __m256i (&steps)[4]) {
  __m256i largest = _mm256_add_epi8(steps[0], steps[0]);  // of the doubled bytes: 0xfe is NaN
#pragma GCC unroll 3
  for (int s = 1; s < 4; ++s) largest = _mm256_max_epu8(largest, _mm256_add_epi8(steps[s], steps[s]));
  return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(static_cast<i8>(0xfe)))) != 0;
}

// 128 weights of four columns as f16, in the order of pairs: [column][16 pairs][8].
struct alignas(32) Weights {
  u16 halves[kColumns][kPairs][8];
};

GLM5_INLINE void decode_column(const u8* column, u16 (&to)[kPairs][8]) {
  __m256i steps[4], halves[8];
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) steps[s] = load_bytes(column + s * cpu::kGemmStep);
  interleave_steps(steps, halves);
  if (has_nan(steps)) [[unlikely]] {
    for (int i = 0; i < 8; ++i) halves[i] = f16_nan(halves[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm_store_si128(reinterpret_cast<__m128i*>(to[i]), _mm256_castsi256_si128(halves[i]));
    _mm_store_si128(reinterpret_cast<__m128i*>(to[i + 8]), _mm256_extracti128_si256(halves[i], 1));
  }
}

// The eight chains of Columns columns from `first` on with Rows rows of a. Chains of several columns go side by side where
// rows are few, since a multiply-add takes four cycles and two can start in each.
template <int Rows, int Columns>
GLM5_INLINE void multiply_chains(const Weights& weights, const f32* a, int first, __m256 (&chains)[Rows][kColumns]) {
  __m256 sums[Columns][Rows];
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) sums[c][r] = _mm256_setzero_ps();
  }
#pragma GCC unroll 2
  for (i64 i = 0; i < kPairs; ++i) {
#pragma GCC unroll 4
    for (int c = 0; c < Columns; ++c) {
      const auto* halves = reinterpret_cast<const __m128i*>(weights.halves[first + c][i]);
      const __m256 weight = _mm256_cvtph_ps(_mm_load_si128(halves));
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r)
        sums[c][r] = _mm256_fmadd_ps(weight, _mm256_load_ps(a + r * cpu::kGemmBlock + i * 8), sums[c][r]);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < Columns; ++c) {
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) chains[r][first + c] = sums[c][r];
  }
}

// part(g) of four columns: even + odd of each step, then the steps in order.
GLM5_INLINE __m128 add_lanes(const __m256 (&chains)[kColumns]) {
  const __m256 left = _mm256_hadd_ps(chains[0], chains[1]), right = _mm256_hadd_ps(chains[2], chains[3]);
  const __m256 even_steps = _mm256_shuffle_ps(left, right, 0x88), odd_steps = _mm256_shuffle_ps(left, right, 0xdd);
  const __m128 first = _mm_add_ps(_mm_setzero_ps(), _mm256_castps256_ps128(even_steps));
  const __m128 second = _mm_add_ps(first, _mm256_castps256_ps128(odd_steps));
  const __m128 third = _mm_add_ps(second, _mm256_extractf128_ps(even_steps, 1));
  return _mm_add_ps(third, _mm256_extractf128_ps(odd_steps, 1));
}

// Four columns of b, from first_column on; those beyond n repeat the last one, and nobody stores them.
struct Columns {
  const u8* bytes[kColumns];
  const f32* scales[kColumns];

  GLM5_INLINE Columns(const Fp8GemmArgs& args, i64 first_column) {
    for (i64 c = 0; c < kColumns; ++c) {
      const i64 column = smaller(first_column + c, args.b.shape[0] - 1);
      bytes[c] = reinterpret_cast<const u8*>(args.b.at(column, 0));
      scales[c] = args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, 0);
    }
  }
};

// A group of a column where k ends within it.
GLM5_INLINE const u8* padded(const u8* bytes, i64 valid, u8* stage) {
  for (i64 i = 0; i < kFp8Group; ++i) stage[i] = i < valid ? bytes[i] : 0;
  return stage;
}

template <int Rows>
void multiply_columns(const Fp8GemmArgs& args, const cpu::PackedRows& packed, i64 first_column, u8* stage, f32* totals) {
  const Columns columns(args, first_column);
  const i64 k = args.b.shape[1], scale_stride = args.b_scales.stride[1];
  __m128 total[Rows];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) total[r] = _mm_setzero_ps();
  for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
    const f32* a = packed.at(0, g);
    const i64 valid = k - g * kFp8Group;
    Weights weights;
#pragma GCC unroll 1
    for (int c = 0; c < kColumns; ++c) {
      const u8* bytes = columns.bytes[c] + g * kFp8Group;
      _mm_prefetch(reinterpret_cast<const char*>(bytes + 1024), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(bytes + 1088), _MM_HINT_T0);
      decode_column(valid < kFp8Group ? padded(bytes, valid, stage) : bytes, weights.halves[c]);
    }
    __m256 chains[Rows][kColumns];
    constexpr int kTogether = Rows <= 2 ? 4 : Rows <= 5 ? 2 : 1;
#pragma GCC unroll 1
    for (int c = 0; c < kColumns; c += kTogether) multiply_chains<Rows, kTogether>(weights, a, c, chains);
    const __m128 b_scale = _mm_setr_ps(columns.scales[0][g * scale_stride], columns.scales[1][g * scale_stride],
                                       columns.scales[2][g * scale_stride], columns.scales[3][g * scale_stride]);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const __m128 scale = _mm_mul_ps(_mm_set1_ps(*args.a_scales.at(r, g)), b_scale);
      total[r] = _mm_fmadd_ps(scale, add_lanes(chains[r]), total[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) _mm_store_ps(totals + r * cpu::kGemmTile, total[r]);
}

void multiply_rows(const Fp8GemmArgs& args, const cpu::PackedRows& packed, i64 first_column, u8* stage, f32* totals) {
  switch (packed.rows) {
    case 1: return multiply_columns<1>(args, packed, first_column, stage, totals);
    case 2: return multiply_columns<2>(args, packed, first_column, stage, totals);
    case 3: return multiply_columns<3>(args, packed, first_column, stage, totals);
    case 4: return multiply_columns<4>(args, packed, first_column, stage, totals);
    case 5: return multiply_columns<5>(args, packed, first_column, stage, totals);
    case 6: return multiply_columns<6>(args, packed, first_column, stage, totals);
  }
}

template <class T>
GLM5_INLINE void store_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const f32* totals) {
  const Tensor<T, 2> out = args.out.as<T>();
  for (i64 i = 0; i < item.rows; ++i)
    store_row(out.at(i, item.first_column), totals + i * cpu::kGemmTile, item.columns, args.accumulate);
}

}  // namespace

void fp8_gemm_pack_few_rows(const Fp8GemmArgs& args, i64, i64, i64 thread) {
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const __m256 scale = _mm256_set1_ps(kPackScale);
  for (i64 row = 0; row < m; ++row) {
    for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
      const i64 valid = k - g * kFp8Group;
      const u8* bytes = reinterpret_cast<const u8*>(args.a.at(row, g * kFp8Group));
      if (valid < kFp8Group) bytes = padded(bytes, valid, workspace.stage);
      __m256i steps[4], halves[8];
      for (int s = 0; s < 4; ++s) steps[s] = load_bytes(bytes + s * cpu::kGemmStep);
      interleave_steps(steps, halves);
      for (int i = 0; i < 8; ++i) {
        const TwoF32x8 x = f32_of_f16(f16_nan(halves[i]));
        _mm256_store_ps(packed.at(row, g) + i * 8, _mm256_mul_ps(x.low, scale));
        _mm256_store_ps(packed.at(row, g) + (i + 8) * 8, _mm256_mul_ps(x.high, scale));
      }
    }
  }
}

void fp8_gemm_multiply_few_rows(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], n = args.b.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  for (i64 i = begin; i < end; ++i) {
    const cpu::GemmItem item(i, m, n, cpu::kGemmVectorRows);
    for (i64 j = 0; j < item.columns; j += kColumns)
      multiply_rows(args, packed, item.first_column + j, workspace.stage, workspace.totals + j);
    if (args.out.dtype == Float::f32) {
      store_item<f32>(args, item, workspace.totals);
    } else {
      store_item<bf16>(args, item, workspace.totals);
    }
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::avx2
