// sparse_mla_attention with vectors of any width (Lanes: cpu/gemm_vectors.h): two products for each token, in the loops
// of gemm. Rows are heads: of queries, 128 dims at a time, then of probabilities, 128 keys at a time; they come from
// the L2 cache. A panel of two vectors of columns, made from the chosen keys where they lie, stays in L1: 128 dims of
// some keys, transposed, then some columns of 128 keys as they are. What comes next is asked for while a panel is used.
#pragma once

#include "cpu/gemm_vectors.h"
#include "ops/sparse_mla_attention/items.h"

namespace glm5::sparse_mla {

template <class Lanes>
constexpr i64 kPanelOf = 2 * Lanes::kCount;

// panel[k][key] for k < dims, zero from there to padded_dims; keys from `keys` on are zero. `rows` point at k = 0.
template <i64 Panel>
GLM5_INLINE void pack_keys(f32* panel, const bf16* const* rows, i64 keys, i64 first_dim, i64 dims, i64 padded_dims) {
  const i64 whole = dims / 8 * 8;
  for (i64 j = 0; j < Panel; j += 8) {
    for (i64 k = 0; k < whole; k += 8) {
      __m256 x[8];
#pragma GCC unroll 8
      for (i64 c = 0; c < 8; ++c)
        x[c] = j + c < keys ? avx2::load_f32x8(rows[j + c] + first_dim + k) : _mm256_setzero_ps();
      avx2::transpose_8x8(x);
#pragma GCC unroll 8
      for (i64 r = 0; r < 8; ++r) _mm256_storeu_ps(panel + (k + r) * Panel + j, x[r]);
    }
    for (i64 k = whole; k < padded_dims; ++k) {
      for (i64 c = j; c < j + 8; ++c)
        panel[k * Panel + c] = k < dims && c < keys ? to_f32(rows[c][first_dim + k]) : 0.0f;
    }
  }
}

// panel[key][column] for key < keys, zero from there to padded_keys; columns from `columns` on are zero.
template <i64 Panel>
GLM5_INLINE void pack_values(f32* panel, const bf16* const* rows, i64 keys, i64 first_column, i64 columns) {
  for (i64 i = 0; i < keys; ++i, panel += Panel) {
    const bf16* row = rows[i] + first_column;
    i64 c = 0;
    for (; c + 8 <= smaller(Panel, columns); c += 8) _mm256_storeu_ps(panel + c, avx2::load_f32x8(row + c));
    for (; c < Panel; ++c) panel[c] = c < columns ? to_f32(row[c]) : 0.0f;
  }
  for (i64 i = 0; i < (round_up(keys, cpu::kGemmStep) - keys) * Panel; ++i) panel[i] = 0.0f;
}

// Rows of heads as f32, [128 dims][head][128].
GLM5_INLINE void pack_heads(f32* to, const Tensor<const bf16, 3>& from, i64 token, i64 first_head, i64 heads) {
  const i64 dim = from.shape[2];
  for (i64 first = 0; first < dim; first += cpu::kGemmBlock, to += heads * cpu::kGemmBlock) {
    const i64 valid = smaller(cpu::kGemmBlock, dim - first);
    avx2::pack(to, cpu::kGemmBlock, from.at(token, first_head, first), from.stride[1], 1, heads, valid, heads,
               round_up(valid, cpu::kGemmStep), 0);
  }
}

// Rows of `heads` against a panel, k_end steps deep, added to totals whose rows are `stride` apart.
template <class Lanes>
static void add_panel(const f32* rows, i64 heads, const f32* panel, i64 k_end, f32* totals, i64 stride) {
  cpu::for_row_blocks<Lanes::kStepRows>(heads, [&]<int Rows>(cpu::RowCount<Rows>, i64 i) [[gnu::always_inline]] {
    cpu::add_steps<Lanes, Rows>(rows + i * cpu::kGemmBlock, panel, k_end, totals + i * stride, stride);
  });
}

template <class Lanes>
GLM5_INLINE void zero_rows(f32* totals, i64 rows, i64 stride) {
  for (i64 i = 0; i < rows; ++i) {
    Lanes::store(totals + i * stride, Lanes::zero());
    Lanes::store(totals + i * stride + Lanes::kCount, Lanes::zero());
  }
}

template <class L>
struct Kernel {
  using Lanes = L;
  static constexpr i64 kPanel = kPanelOf<Lanes>, kBlock = cpu::kGemmBlock;

  GLM5_INLINE static void begin() {}
  GLM5_INLINE static void end() {}

  GLM5_INLINE static void multiply_keys(const SparseMlaAttentionArgs& args, const Item& item, i64 count,
                                        const Scratch& scratch) {
    const i64 dim = args.q.shape[2];
    pack_heads(scratch.queries, args.q, item.token, item.first_head, item.heads);
    for (i64 first = 0; first < count; first += kPanel) {
      f32* totals = scratch.scores + first / kBlock * item.heads * kBlock + first % kBlock;
      zero_rows<Lanes>(totals, item.heads, kBlock);
      for (i64 k = 0; k < dim; k += kBlock) {
        const i64 dims = smaller(kBlock, dim - k);
        pack_keys<kPanel>(scratch.panel, scratch.rows + first, count - first, k, dims, round_up(dims, cpu::kGemmStep));
        prefetch_rows(scratch.rows, smaller(first + kPanel, count), smaller(first + 2 * kPanel, count), 2 * k,
                      2 * (k + dims));
        add_panel<Lanes>(scratch.queries + k * item.heads, item.heads, scratch.panel, dims, totals, kBlock);
      }
    }
  }

  GLM5_INLINE static void multiply_values(const SparseMlaAttentionArgs& args, const Item& item, i64 count,
                                          const Scratch& scratch) {
    const i64 v_dim = args.out.shape[2], panels = ceil_div(v_dim, kPanel);
    for (i64 c = 0; c < v_dim; c += kPanel) zero_rows<Lanes>(scratch.out + c * item.heads, item.heads, kPanel);
    for (i64 first = 0; first < count; first += kBlock) {
      const i64 keys = smaller(kBlock, count - first), next = first + kBlock;
      const i64 waiting = larger(0, smaller(kBlock, count - next));
      for (i64 c = 0; c < v_dim; c += kPanel) {
        pack_values<kPanel>(scratch.panel, scratch.rows + first, keys, c, v_dim - c);
        prefetch_rows(scratch.rows, next + waiting * (c / kPanel) / panels, next + waiting * (c / kPanel + 1) / panels,
                      0, 2 * v_dim);
        add_panel<Lanes>(scratch.scores + first * item.heads, item.heads, scratch.panel, keys,
                         scratch.out + c * item.heads, kPanel);
      }
    }
    for (i64 h = 0; h < item.heads; ++h) {
      for (i64 c = 0; c < v_dim; c += kPanel)
        store_out(args.out.at(item.token, item.first_head + h, c), scratch.out + c * item.heads + h * kPanel,
                  smaller(kPanel, v_dim - c), scratch.weights[h]);
    }
  }

  GLM5_INLINE static void store_out(bf16* out, const f32* o, i64 columns, f32 weight) {
    i64 c = 0;
    for (; c + 8 <= columns; c += 8)
      avx2::store_f32x8(out + c, _mm256_mul_ps(_mm256_loadu_ps(o + c), _mm256_set1_ps(weight)));
    for (; c < columns; ++c) out[c] = to_bf16(o[c] * weight);
  }
};

}  // namespace glm5::sparse_mla
