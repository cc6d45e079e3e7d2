#include "cpu/indexer_door.h"
#include "ops/indexer_logits/bwd.h"

namespace glm5 {

namespace generic {
void indexer_logits(const IndexerLogitsArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_queries(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_keys(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void indexer_logits(const IndexerLogitsArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_queries(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_keys(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void indexer_logits(const IndexerLogitsArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_queries(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
void indexer_logits_bwd_keys(const IndexerLogitsBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void indexer_logits(const IndexerLogitsArgs&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// Items are groups of tokens against chunks of keys.
constexpr cpu::Implementation<IndexerLogitsArgs> kScore[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::indexer_logits},
    {cpu::Isa::avx512, avx512::indexer_logits},
    {cpu::Isa::avx2, avx2::indexer_logits},
#endif
    {cpu::Isa::generic, generic::indexer_logits},
};

// The gradient, in two passes: items are groups of tokens, then blocks of keys.
constexpr cpu::Implementation<IndexerLogitsBwdArgs> kQueryGradients[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::indexer_logits_bwd_queries},
    {cpu::Isa::avx2, avx2::indexer_logits_bwd_queries},
#endif
    {cpu::Isa::generic, generic::indexer_logits_bwd_queries},
};
constexpr cpu::Implementation<IndexerLogitsBwdArgs> kKeyGradients[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::indexer_logits_bwd_keys},
    {cpu::Isa::avx2, avx2::indexer_logits_bwd_keys},
#endif
    {cpu::Isa::generic, generic::indexer_logits_bwd_keys},
};

}  // namespace

i64 indexer_logits_workspace_bytes(i64 heads, i64 dim) {
  return cpu::indexer_workspace_size(cpu::indexer_shape(heads, dim), cpu::thread_count());
}

void indexer_logits_cpu(const IndexerLogitsArgs& args) {
  const IndexerOperands& operands = args.operands;
  const char* op = operands.is_paged ? "indexer_logits_paged" : "indexer_logits";
  const i64 tokens = operands.q.shape[0], heads = operands.q.shape[1], dim = operands.q.shape[2];
  cpu::check_indexer_operands(op, operands);
  cpu::check_workspace(op, args.workspace, indexer_logits_workspace_bytes(heads, dim));
  cpu::run_best(kScore, args, cpu::IndexerItem::count(tokens, operands.keys(), cpu::indexer_shape(heads, dim).group()));
}

i64 indexer_logits_bwd_workspace_bytes(i64 heads, i64 dim) {
  return indexer_logits_bwd::workspace_size(heads, dim, cpu::thread_count());
}

void indexer_logits_bwd_cpu(const IndexerLogitsBwdArgs& args) {
  const IndexerOperands& operands = args.operands;
  const i64 tokens = operands.q.shape[0], heads = operands.q.shape[1], dim = operands.q.shape[2];
  cpu::check_indexer_operands("indexer_logits_bwd", operands);
  cpu::check_workspace("indexer_logits_bwd", args.workspace, indexer_logits_bwd_workspace_bytes(heads, dim));
  cpu::run_best(kQueryGradients, args, ceil_div(tokens, indexer_logits_bwd::group_of(heads)));
  if (!operands.q.is_e4m3) cpu::run_best(kKeyGradients, args, ceil_div(operands.keys(), indexer_logits_bwd::kKeys));
}

}  // namespace glm5
