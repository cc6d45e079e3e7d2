// The gradient of sparse_mla_attention in portable C++: the trees spelled out.
#include "ops/sparse_mla_attention/bwd.h"
#include "ops/sparse_mla_attention/products.h"

namespace glm5::generic {
namespace {

using sparse_mla::Block;
using sparse_mla::BwdScratch;

struct BwdKernel {
  static void differentiate_token(const Block& block, i64 token, i64 count, const BwdScratch& scratch) {
    const SparseMlaAttentionBwdArgs& args = block.args;
    const i64 heads = args.q.shape[1], dim = args.q.shape[2];
    for (i64 i = 0; i < heads * dim; ++i) scratch.d_q[i] = 0.0f;
    for (i64 first = 0; first < count; first += cpu::kGemmBlock) {
      const i64 valid = smaller(cpu::kGemmBlock, count - first);
      for (i64 h = 0; h < heads; ++h) {
        multiply_keys(args, token, h, first, valid, scratch);
        sparse_mla::differentiate_scores<cpu::ScalarLanes>(args, token, h, valid, scratch);
        add_to_d_q(args, h, first, valid, scratch);
      }
      for (i64 i = 0; i < valid; ++i) contribute(block, token, first + i, scratch);
    }
    for (i64 h = 0; h < heads; ++h)
      for (i64 c = 0; c < dim; ++c) *args.d_q.at(token, h, c) = to_bf16(scratch.d_q[h * dim + c]);
  }

  // d and dp.
  static void multiply_keys(const SparseMlaAttentionBwdArgs& args, i64 token, i64 h, i64 first, i64 valid,
                            const BwdScratch& scratch) {
    for (i64 i = 0; i < valid; ++i) {
      const bf16* row = scratch.rows[first + i];
      const auto key = [&](i64 k) { return to_f32(row[k]); };
      scratch.scores[h * cpu::kGemmBlock + i] = add_products(
          args.q.shape[2], 0.0f, [&](i64 k) { return to_f32(*args.q.at(token, h, k)); }, key);
      scratch.d_scores[h * cpu::kGemmBlock + i] = add_products(
          args.out.shape[2], 0.0f, [&](i64 k) { return to_f32(*args.d_out.at(token, h, k)); }, key);
    }
  }

  static void add_to_d_q(const SparseMlaAttentionBwdArgs& args, i64 h, i64 first, i64 valid,
                         const BwdScratch& scratch) {
    const i64 dim = args.q.shape[2];
    const f32* ds = scratch.scores + h * cpu::kGemmBlock;
    for (i64 c = 0; c < dim; ++c) {
      f32& total = scratch.d_q[h * dim + c];
      total = add_products(
          valid, total, [&](i64 i) { return ds[i]; }, [&](i64 i) { return to_f32(scratch.rows[first + i][c]); });
    }
  }

  static void contribute(const Block& block, i64 token, i64 key, const BwdScratch& scratch) {
    const SparseMlaAttentionBwdArgs& args = block.args;
    const i64 heads = args.q.shape[1], i = key % cpu::kGemmBlock;
    f32* row = block.contribution(token, key);
    for (i64 c = 0; c < args.q.shape[2]; ++c) {
      row[c] = add_products(
          heads, 0.0f, [&](i64 h) { return scratch.scores[h * cpu::kGemmBlock + i]; },
          [&](i64 h) { return to_f32(*args.q.at(token, h, c)); });
      if (c >= args.out.shape[2]) continue;
      row[c] = add_products(
          heads, row[c], [&](i64 h) { return scratch.d_scores[h * cpu::kGemmBlock + i]; },
          [&](i64 h) { return to_f32(*args.d_out.at(token, h, c)); });
    }
  }
};

}  // namespace

void sparse_mla_attention_bwd(const Block& block, i64 begin, i64 end, i64 thread) {
  sparse_mla::differentiate<BwdKernel>(block, begin, end, thread);
}

}  // namespace glm5::generic
