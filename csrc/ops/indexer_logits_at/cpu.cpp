#include "core/fp8.h"
#include "cpu/indexer_door.h"
#include "ops/indexer_logits_at/items.h"

namespace glm5 {

namespace generic {
void indexer_logits_at(const IndexerLogitsAtArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_at_bwd(const at::Block&, i64 begin, i64 end, i64 thread);
}  // namespace generic
#if defined(__x86_64__)
namespace avx2 {
void indexer_logits_at(const IndexerLogitsAtArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_at_bwd(const at::Block&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void indexer_logits_at(const IndexerLogitsAtArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_at_bwd(const at::Block&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void indexer_logits_at(const IndexerLogitsAtArgs&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// Items are tokens.
constexpr cpu::Implementation<IndexerLogitsAtArgs> kScore[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::indexer_logits_at},
    {cpu::Isa::avx512, avx512::indexer_logits_at},
    {cpu::Isa::avx2, avx2::indexer_logits_at},
#endif
    {cpu::Isa::generic, generic::indexer_logits_at},
};
// Items are the tokens of a block.
constexpr cpu::Implementation<at::Block> kDifferentiate[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::indexer_logits_at_bwd},
    {cpu::Isa::avx2, avx2::indexer_logits_at_bwd},
#endif
    {cpu::Isa::generic, generic::indexer_logits_at_bwd},
};

// sums[s] += the contributions of a block, for the keys that a thread owns, in the order of tokens and places.
void add_contributions(const at::Block& block, i64 tokens, f32* sums) {
  const IndexerLogitsAtBwdArgs& args = block.args;
  const i64 keys = args.operands.k.shape[0], topk = args.indices.shape[1];
  const i64 dim = args.operands.q.shape[2], padded = at::padded_dim(dim);
  const i64 ranges = smaller(keys, 4 * cpu::thread_count()), width = ceil_div(keys, larger(ranges, 1));
  cpu::parallel_for(ranges, 1, [&](i64 begin, i64 end, i64) {
    const cpu::FloatState before = cpu::use_flushing_floats();
    for (i64 t = block.first_token; t < block.first_token + tokens; ++t) {
      for (i64 j = 0; j < topk; ++j) {
        const i64 key = at::key_at(args.indices, keys, t, j);
        if (key < begin * width || key >= end * width) continue;  // absent ones too: begin is 0 or more
        const f32* row = block.contribution(t, j);
        for (i64 i = 0; i < dim; ++i) sums[key * padded + i] += row[i];
      }
    }
    cpu::restore_floats(before);
  });
}

}  // namespace

i64 indexer_logits_at_workspace_bytes(i64 heads, i64 dim) {
  const i64 own = cpu::IndexerScratchSize(cpu::indexer_shape(heads, dim)).bytes() + at::gathered_bytes(dim);
  return cpu::thread_count() * own + at::kAlign;
}

i64 indexer_logits_at_bwd_workspace_bytes(i64 tokens, i64 topk, i64 keys, i64 heads, i64 dim) {
  const i64 rows = keys + smaller(tokens, at::kBlockTokens) * topk;
  const i64 own = round_up(at::BwdScratch::floats(heads, dim) * 4, at::kAlign);
  return rows * at::padded_dim(dim) * 4 + cpu::thread_count() * own + at::kAlign;
}

void indexer_logits_at_cpu(const IndexerLogitsAtArgs& args) {
  const auto& shape = args.operands.q.shape;
  cpu::check_workspace("indexer_logits_at", args.workspace, indexer_logits_at_workspace_bytes(shape[1], shape[2]));
  cpu::run_best(kScore, args, shape[0]);
}

void indexer_logits_at_bwd_cpu(const IndexerLogitsAtBwdArgs& args) {
  const auto& shape = args.operands.q.shape;
  const i64 tokens = shape[0], dim = shape[2], keys = args.operands.k.shape[0], topk = args.indices.shape[1];
  cpu::check_workspace("indexer_logits_at_bwd", args.workspace,
                       indexer_logits_at_bwd_workspace_bytes(tokens, topk, keys, shape[1], dim));
  const bool with_qk = !args.operands.q.is_e4m3;
  const i64 padded = at::padded_dim(dim);
  f32* sums = reinterpret_cast<f32*>(at::aligned(args.workspace.data));
  f32* contributions = sums + keys * padded;
  u8* scratch = reinterpret_cast<u8*>(contributions + smaller(tokens, at::kBlockTokens) * topk * padded);
  if (with_qk) {
    cpu::parallel_for(keys, 256, [&](i64 begin, i64 end, i64) {
      for (i64 i = begin * padded; i < end * padded; ++i) sums[i] = 0;
    });
  }
  for (i64 first = 0; first < tokens; first += at::kBlockTokens) {
    const i64 count = smaller(at::kBlockTokens, tokens - first);
    const at::Block block{args, first, contributions, scratch};
    cpu::run_best(kDifferentiate, block, count);
    if (with_qk) add_contributions(block, count, sums);
  }
  if (!with_qk) return;
  cpu::parallel_for(keys, 64, [&](i64 begin, i64 end, i64) {
    for (i64 s = begin; s < end; ++s)
      for (i64 i = 0; i < dim; ++i) *args.d_k.at(s, i) = to_bf16(sums[s * padded + i]);
  });
}

}  // namespace glm5
