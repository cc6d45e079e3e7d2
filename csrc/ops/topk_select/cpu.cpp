#include "core/window_check.h"
#include "cpu/isa.h"
#include "cpu/workspace_check.h"
#include "ops/topk_select/rows.h"

namespace glm5 {

namespace generic {
void topk_select(const topk::Work&, i64 begin, i64 end, i64 thread);
void topk_select_merge(const topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace generic
#if defined(__x86_64__)
namespace avx2 {
void topk_select(const topk::Work&, i64 begin, i64 end, i64 thread);
void topk_select_merge(const topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void topk_select(const topk::Work&, i64 begin, i64 end, i64 thread);
void topk_select_merge(const topk::Work&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
#endif

namespace {

constexpr cpu::Implementation<topk::Work> kSelect[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::topk_select},
    {cpu::Isa::avx2, avx2::topk_select},
#endif
    {cpu::Isa::generic, generic::topk_select},
};

constexpr cpu::Implementation<topk::Work> kMerge[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::topk_select_merge},
    {cpu::Isa::avx2, avx2::topk_select_merge},
#endif
    {cpu::Isa::generic, generic::topk_select_merge},
};

}  // namespace

i64 topk_select_workspace_bytes(i64 rows, i64 keys, i64 topk, bool margins) {
  const i64 threads = cpu::thread_count();
  return topk::workspace_bytes(rows, keys, topk::keep_of(topk, margins), topk::parts_of(rows, keys, threads), threads);
}

void topk_select_cpu(const TopkSelectArgs& args) {
  const i64 rows = args.scores.shape[0], keys = args.scores.shape[1], topk = args.indices.shape[1];
  constexpr i64 kAnyPage = i64{1} << 31;  // how many pages the cache has is not told
  if (args.windows.exists()) check_windows("topk_select", args.windows, keys);
  if (args.block_table.exists())
    check_block_table("topk_select", args.block_table, args.sequences, args.windows, keys, kAnyPage);
  if (rows == 0) return;
  cpu::check_workspace("topk_select", args.workspace,
                       topk_select_workspace_bytes(rows, keys, topk, args.margins.shape[0] > 0));
  const i64 threads = cpu::thread_count();
  const topk::Work work{args, topk::parts_of(rows, keys, threads), threads};
  const i64 grain = larger(1, 4096 / larger(1, keys));  // short rows: several at a time
  cpu::run_best(kSelect, work, rows * work.parts, grain);
  if (work.parts > 1) cpu::run_best(kMerge, work, rows);
}

}  // namespace glm5
