#include "cpu/indexer_door.h"
#include "ops/indexer_topk/items.h"

namespace glm5 {

namespace generic {
void indexer_topk(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
void indexer_topk_merge(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void indexer_topk(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
void indexer_topk_merge(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void indexer_topk(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
void indexer_topk_merge(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void indexer_topk(const indexer_topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

constexpr cpu::Implementation<indexer_topk::Work> kSelect[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::indexer_topk},
    {cpu::Isa::avx512, avx512::indexer_topk},
    {cpu::Isa::avx2, avx2::indexer_topk},
#endif
    {cpu::Isa::generic, generic::indexer_topk},
};
constexpr cpu::Implementation<indexer_topk::Work> kMerge[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::indexer_topk_merge},
    {cpu::Isa::avx2, avx2::indexer_topk_merge},
#endif
    {cpu::Isa::generic, generic::indexer_topk_merge},
};

indexer_topk::Cut cut_of(i64 tokens, i64 keys, i64 heads, i64 dim, i64 topk, bool margins) {
  return {cpu::indexer_shape(heads, dim), tokens, keys, topk + margins, cpu::thread_count()};
}

}  // namespace

i64 indexer_topk_workspace_bytes(i64 tokens, i64 keys, i64 heads, i64 dim, i64 topk, bool margins) {
  return cut_of(tokens, keys, heads, dim, topk, margins).workspace_bytes();
}

void indexer_topk_cpu(const IndexerTopkArgs& args) {
  const IndexerOperands& operands = args.operands;
  const char* op = operands.is_paged ? "indexer_topk_paged" : "indexer_topk";
  const i64 tokens = operands.q.shape[0], keys = operands.keys();
  cpu::check_indexer_operands(op, operands);
  if (tokens == 0) return;
  const indexer_topk::Work work{args, cut_of(tokens, keys, operands.q.shape[1], operands.q.shape[2],
                                             args.indices.shape[1], args.margins.shape[0] > 0)};
  cpu::check_workspace(op, args.workspace, work.cut.workspace_bytes());
  cpu::run_best(kSelect, work, work.cut.groups() * work.cut.parts);
  if (work.cut.parts > 1) cpu::run_best(kMerge, work, tokens);
}

}  // namespace glm5
