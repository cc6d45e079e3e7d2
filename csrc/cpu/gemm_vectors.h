// Matrix products with vectors, written once for every width: what goes in and out, and the inner loops, rows of 128
// f32 against panels of two vectors of columns. Lanes, given by cpu/avx2.h and cpu/avx512.h, says what a vector is.
// Everything is inlined or static: each object has its own copy.
#pragma once

#include "cpu/avx2.h"
#include "cpu/gemm.h"

// ---- At the edges of a product AVX2 serves every width ----

namespace glm5::avx2 {

// to[i * to_stride + j] = from[i * i_stride + j * j_stride] as f32 for i < rows, j < columns, where i_stride or
// j_stride is 1; zero for the other i < padded_rows, j < padded_columns. What is likely to be packed next lies `ahead`.
template <class T>
GLM5_INLINE void pack(f32* to, i64 to_stride, const T* from, i64 i_stride, i64 j_stride, i64 rows, i64 columns,
                      i64 padded_rows, i64 padded_columns, i64 ahead) {
  for (i64 i = 0; i < padded_rows; ++i) {
    for (i64 j = i < rows ? columns : 0; j < padded_columns; ++j) to[i * to_stride + j] = 0.0f;
  }
  if (j_stride == 1) {
    for (i64 i = 0; i < rows; ++i) {
      i64 j = 0;
      for (; j + 8 <= columns; j += 8) {
        const T* row = from + i * i_stride + j;
        _mm256_storeu_ps(to + i * to_stride + j, load_f32x8(row));
        _mm_prefetch(reinterpret_cast<const char*>(row + ahead), _MM_HINT_T0);
      }
      for (; j < columns; ++j) to[i * to_stride + j] = to_f32(from[i * i_stride + j]);
    }
    return;
  }
  const i64 whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (i64 j = 0; j < whole_columns; j += 8) {
    for (i64 i = 0; i < whole_rows; i += 8) {
      __m256 x[8];
#pragma GCC unroll 8
      for (int c = 0; c < 8; ++c) {
        const T* column = from + i + (j + c) * j_stride;
        x[c] = load_f32x8(column);
        _mm_prefetch(reinterpret_cast<const char*>(column + ahead), _MM_HINT_T0);
      }
      transpose_8x8(x);
#pragma GCC unroll 8
      for (int r = 0; r < 8; ++r) _mm256_storeu_ps(to + (i + r) * to_stride + j, x[r]);
    }
  }
  for (i64 i = 0; i < rows; ++i) {
    for (i64 j = i < whole_rows ? whole_columns : 0; j < columns; ++j)
      to[i * to_stride + j] = to_f32(from[i * i_stride + j * j_stride]);
  }
}

// out = total, or out + total, rounded to the type of out.
template <class T>
GLM5_INLINE void store_row(T* out, const f32* total, i64 columns, bool accumulate) {
  i64 j = 0;
  for (; j + 8 <= columns; j += 8) {
    __m256 sum = _mm256_loadu_ps(total + j);
    if (accumulate) sum = _mm256_add_ps(load_f32x8(out + j), sum);
    store_f32x8(out + j, sum);
  }
  for (; j < columns; ++j) store_scalar(out + j, accumulate ? to_f32(out[j]) + total[j] : total[j]);
}

// The same for an item's totals, which lie as [panel][row][Panel].
template <i64 Panel, class T>
GLM5_INLINE void store_item(const Tensor<T, 2>& out, const cpu::GemmItem& item, const f32* totals, bool accumulate) {
  for (i64 i = 0; i < item.rows; ++i) {
    for (i64 j = 0; j < item.columns; j += Panel)
      store_row(out.at(item.first_row + i, item.first_column + j), totals + j * item.rows + i * Panel,
                smaller(Panel, item.columns - j), accumulate);
  }
}
template <i64 Panel>
GLM5_INLINE void store_item(const FloatTensor<2>& out, const cpu::GemmItem& item, const f32* totals, bool accumulate) {
  if (out.dtype == Float::f32) return store_item<Panel>(out.as<f32>(), item, totals, accumulate);
  store_item<Panel>(out.as<bf16>(), item, totals, accumulate);
}

// ---- One or two rows, for which no panel of b is worth its way through memory ----

// 16 columns of b whose unit stride runs along k, walked together. Four pointers and two distances are all that the
// processor's address modes need; left to itself the compiler keeps a pointer per column, most of them in memory.
struct ColumnWalk {
  const u8* quarters[4];
  i64 stride, triple;  // in bytes

  template <class T>
  GLM5_INLINE ColumnWalk(const T* b, i64 element_stride)
      : stride(element_stride * static_cast<i64>(sizeof(T))), triple(3 * stride) {
    for (int i = 0; i < 4; ++i) quarters[i] = reinterpret_cast<const u8*>(b) + 4 * i * stride;
  }

  GLM5_INLINE const u8* column(int quarter, int i, i64 byte) const {
    return quarters[quarter] + (i == 3 ? triple : i * stride) + byte;
  }
  GLM5_INLINE void prefetch(i64 ahead) const {
#pragma GCC unroll 16
    for (int c = 0; c < 16; ++c) _mm_prefetch(reinterpret_cast<const char*>(column(c / 4, c % 4, ahead)), _MM_HINT_T1);
  }
  GLM5_INLINE void advance(i64 bytes) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      quarters[i] += bytes;
      asm("" : "+r"(quarters[i]));  // no pointer per column, see above
    }
  }

  // 32 bytes of 8 columns, transposed: x[i] holds the f32, or pair of bf16, number i of all of them. Loads put the
  // halves of the transposition where they belong, which spares a third of its shuffles.
  GLM5_INLINE void load(__m256 (&x)[8], int half, i64 byte) const {
    __m256 y[8], z[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const u8* near = column(2 * half, i % 4, byte + i / 4 * 16);
      const u8* far = column(2 * half + 1, i % 4, byte + i / 4 * 16);
      y[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(reinterpret_cast<const f32*>(near))),
                                  _mm_loadu_ps(reinterpret_cast<const f32*>(far)), 1);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      z[i] = _mm256_unpacklo_ps(y[i], y[i + 1]);
      z[i + 1] = _mm256_unpackhi_ps(y[i], y[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      x[i] = _mm256_shuffle_ps(z[i], z[i + 2], 0x44);
      x[i + 1] = _mm256_shuffle_ps(z[i], z[i + 2], 0xee);
      x[i + 2] = _mm256_shuffle_ps(z[i + 1], z[i + 3], 0x44);
      x[i + 3] = _mm256_shuffle_ps(z[i + 1], z[i + 3], 0xee);
    }
  }
};

// total += parts of 128 k of the tree for f32, for Rows x 16 columns. Eight columns at a time: where their stride is a
// multiple of 4 KiB, they share one set of the L1 cache, which has eight places. The next 128 k are likely to be read
// next; for the same reason they come into the L2 cache alone.
template <int Rows>
GLM5_INLINE void add_columns(const f32* a, const f32* b, i64 stride, f32* totals) {
  ColumnWalk walk(b, stride);
  __m256 chain[2][Rows] = {};
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += 16) {
    walk.prefetch(cpu::kGemmBlock * 4);
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) {
      const int half = part / 2, upper = part % 2 * 8;
      __m256 x[8];
      walk.load(x, half, upper * 4);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
#pragma GCC unroll 2
        for (int r = 0; r < Rows; ++r) {
          const __m256 row = _mm256_broadcast_ss(a + r * cpu::kGemmBlock + k + upper + i);
          chain[half][r] = _mm256_fmadd_ps(row, x[i], chain[half][r]);
        }
      }
    }
    walk.advance(64);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 2 * Rows; ++i) {
    f32* total = totals + i * 8;
    _mm256_storeu_ps(total, _mm256_add_ps(_mm256_loadu_ps(total), chain[i % 2][i / 2]));
  }
}

// The same by the tree for bf16, step by step.
template <int Rows>
GLM5_INLINE void add_columns(const f32* a, const bf16* b, i64 stride, f32* totals) {
  const __m256 odd_mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<i32>(0xffff0000)));
  ColumnWalk walk(b, stride);
#pragma GCC unroll 1
  for (i64 k = 0; k < cpu::kGemmBlock; k += cpu::kGemmStep) {
    walk.prefetch(cpu::kGemmBlock * 2);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256 even[Rows] = {}, odd[Rows] = {};
#pragma GCC unroll 2
      for (int upper = 0; upper < 32; upper += 16) {
        __m256 x[8];
        walk.load(x, half, upper * 2);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const __m256 x_even = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x[i]), 16));
          const __m256 x_odd = _mm256_and_ps(x[i], odd_mask);
#pragma GCC unroll 2
          for (int r = 0; r < Rows; ++r) {
            const f32* row = a + r * cpu::kGemmBlock + k + upper + 2 * i;
            even[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(row), x_even, even[r]);
            odd[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(row + 1), x_odd, odd[r]);
          }
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < Rows; ++r) {
        f32* total = totals + (2 * r + half) * 8;
        _mm256_storeu_ps(total, _mm256_add_ps(_mm256_loadu_ps(total), _mm256_add_ps(even[r], odd[r])));
      }
    }
    walk.advance(64);
  }
}

}  // namespace glm5::avx2

// ---- Inner loops ----

namespace glm5::cpu {

// Brings the next rows into the L1 cache: `lines` lines from `next` on.
template <int Lines>
GLM5_INLINE void prefetch_lines(const f32* next) {
#pragma GCC unroll 32
  for (int line = 0; line < Lines; ++line) __builtin_prefetch(next + line * 16);
}

// Calls block(constant, i) for rows i .. i + constant, `Rows` at a time, then fewer.
template <int Rows>
struct RowCount {};
template <int Rows, class Block>
GLM5_INLINE void for_row_blocks(i64 rows, const Block& block, i64 i = 0) {
  for (; i + Rows <= rows; i += Rows) block(RowCount<Rows>{}, i);
  if constexpr (Rows > 1) for_row_blocks<(Rows > 6 ? 6 : Rows - 1)>(rows, block, i);
}

// How a panel of 128 k lies in memory. As f32: [k][columns]. As f16, which AVX2 widens when it loads: 16 columns, in
// the order that its transposition leaves, [32 k][16 k: j][columns 0..7: j, j + 16; columns 8..15: j, j + 16].
template <class Lanes, class T>
struct Panel {
  static constexpr i64 kColumns = 2 * Lanes::kCount;
  static constexpr bool is_f32 = sizeof(T) == 4;
  static constexpr i64 kRow = is_f32 ? kColumns : 32;         // from k to k + 1, inside 16
  static constexpr i64 kUpper = is_f32 ? 16 * kColumns : 8;   // from k to k + 16
  static constexpr i64 kRight = is_f32 ? Lanes::kCount : 16;  // from the left vector to the right one
};

// A step of the tree: sum = (chain over even k) + (chain over odd k), for Rows x 2 vectors. 12 of AVX2's 16 registers
// hold chains when Rows is 3; two hold b and one a, so that ten loads feed twelve multiply-adds. AVX-512 takes 6.
template <class Lanes, int Rows, class T>
GLM5_INLINE void multiply_step(const f32* a, const T* panel, typename Lanes::F32 (&sum)[Rows][2]) {
  using P = Panel<Lanes, T>;
  typename Lanes::F32 even[Rows][2], odd[Rows][2];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) even[r][0] = even[r][1] = odd[r][0] = odd[r][1] = Lanes::zero();
#pragma GCC unroll 1
  for (i64 upper = 0; upper < 2; ++upper) {
#pragma GCC unroll 4
    for (i64 j = 0; j < 16; j += 2) {
      const T* b = panel + upper * P::kUpper + j * P::kRow;
      const f32* x = a + upper * 16 + j;
      const auto even_left = Lanes::load(b), even_right = Lanes::load(b + P::kRight);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto row = Lanes::broadcast(x[r * kGemmBlock]);
        even[r][0] = Lanes::fma(row, even_left, even[r][0]);
        even[r][1] = Lanes::fma(row, even_right, even[r][1]);
      }
      const auto odd_left = Lanes::load(b + P::kRow), odd_right = Lanes::load(b + P::kRow + P::kRight);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const auto row = Lanes::broadcast(x[r * kGemmBlock + 1]);
        odd[r][0] = Lanes::fma(row, odd_left, odd[r][0]);
        odd[r][1] = Lanes::fma(row, odd_right, odd[r][1]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    sum[r][0] = even[r][0] + odd[r][0];
    sum[r][1] = even[r][1] + odd[r][1];
  }
}

// total += step, for Rows x 2 vectors and the steps of one block; rows of totals are `stride` apart.
template <class Lanes, int Rows>
GLM5_INLINE void add_steps(const f32* a, const f32* panel, i64 k_end, f32* totals, i64 stride) {
#pragma GCC unroll 1
  for (i64 k = 0; k < k_end; k += kGemmStep) {
    // The next rows come from the L2 cache: a quarter of them with each step.
    prefetch_lines<2 * Rows>(a + Rows * (kGemmBlock + k));
    typename Lanes::F32 step[Rows][2];
    multiply_step<Lanes, Rows>(a + k, panel + k * 2 * Lanes::kCount, step);
#pragma GCC unroll 16
    for (int i = 0; i < 2 * Rows; ++i) {
      f32* total = totals + i / 2 * stride + i % 2 * Lanes::kCount;
      Lanes::store(total, Lanes::load(total) + step[i / 2][i % 2]);
    }
  }
}

// A chain over k < k_end of a block, a multiple of 8, for Rows x 2 vectors; 6 rows fill 12 registers, 12 rows fill 24.
// The next rows come from the L2 cache: a sixteenth of them with each 8 k.
template <class Lanes, int Rows>
GLM5_INLINE void multiply_chain(const f32* a, const f32* panel, i64 k_end, typename Lanes::F32 (&chain)[Rows][2]) {
  constexpr i64 kCount = Lanes::kCount;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) chain[r][0] = chain[r][1] = Lanes::zero();
#pragma GCC unroll 1
  for (i64 k = 0; k < k_end; k += 8) {
    prefetch_lines<(Rows + 1) / 2>(a + Rows * (kGemmBlock + k));
#pragma GCC unroll 8
    for (i64 i = 0; i < 8; ++i) {
      const auto left = Lanes::load(panel + (k + i) * 2 * kCount);
      const auto right = Lanes::load(panel + (k + i) * 2 * kCount + kCount);
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) {
        const auto row = Lanes::broadcast(a[r * kGemmBlock + k + i]);
        chain[r][0] = Lanes::fma(row, left, chain[r][0]);
        chain[r][1] = Lanes::fma(row, right, chain[r][1]);
      }
    }
  }
}

}  // namespace glm5::cpu
