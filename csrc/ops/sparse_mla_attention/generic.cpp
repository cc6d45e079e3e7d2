// sparse_mla_attention in portable C++: the tree spelled out.
#include "ops/sparse_mla_attention/items.h"
#include "ops/sparse_mla_attention/products.h"

namespace glm5::generic {
namespace {

using sparse_mla::Item;
using sparse_mla::Scratch;

struct Kernel {
  using Lanes = cpu::ScalarLanes;

  static void begin() {}
  static void end() {}

  static f32* score(const Item& item, i64 h, i64 i, const Scratch& scratch) {
    return scratch.scores + (i / cpu::kGemmBlock * item.heads + h) * cpu::kGemmBlock + i % cpu::kGemmBlock;
  }

  static void multiply_keys(const SparseMlaAttentionArgs& args, const Item& item, i64 count, const Scratch& scratch) {
    for (i64 h = 0; h < item.heads; ++h) {
      const bf16* q = args.q.at(item.token, item.first_head + h, 0);
      for (i64 i = 0; i < count; ++i)
        *score(item, h, i, scratch) = add_products(
            args.q.shape[2], 0.0f, [&](i64 k) { return to_f32(q[k]); },
            [&](i64 k) { return to_f32(scratch.rows[i][k]); });
    }
  }

  static void multiply_values(const SparseMlaAttentionArgs& args, const Item& item, i64 count, const Scratch& scratch) {
    for (i64 h = 0; h < item.heads; ++h) {
      for (i64 c = 0; c < args.out.shape[2]; ++c) {
        const f32 o = add_products(
            count, 0.0f, [&](i64 i) { return *score(item, h, i, scratch); },
            [&](i64 i) { return to_f32(scratch.rows[i][c]); });
        *args.out.at(item.token, item.first_head + h, c) = to_bf16(o * scratch.weights[h]);
      }
    }
  }
};

}  // namespace

void sparse_mla_attention(const sparse_mla::Task& task, i64 begin, i64 end, i64 thread) {
  sparse_mla::attend<Kernel>(task, begin, end, thread);
}

}  // namespace glm5::generic
