// indexer_logits, portable.
#include "cpu/indexer_generic.h"
#include "ops/indexer_logits/items.h"

namespace glm5::generic {

void indexer_logits(const IndexerLogitsArgs& args, i64 begin, i64 end, i64 thread) {
  score_items<Scorer>(args, begin, end, thread);
}

}  // namespace glm5::generic
