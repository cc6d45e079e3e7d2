// indexer_topk, portable.
#include "cpu/indexer_generic.h"
#include "ops/indexer_topk/items.h"

namespace glm5::generic {

void indexer_topk(const indexer_topk::Work& work, i64 begin, i64 end, i64 thread) {
  indexer_topk::select_items<Scorer, cpu::PlainLanes>(work, begin, end, thread);
}

void indexer_topk_merge(const indexer_topk::Work& work, i64 begin, i64 end, i64) {
  indexer_topk::merge_items<cpu::PlainLanes>(work, begin, end);
}

}  // namespace glm5::generic
