// indexer_logits with AMX: 16 heads x 16 keys a tile.
#include "cpu/indexer_amx.h"
#include "ops/indexer_logits/items.h"

namespace glm5::amx {

void indexer_logits(const IndexerLogitsArgs& args, i64 begin, i64 end, i64 thread) {
  score_items<Scorer>(args, begin, end, thread);
}

}  // namespace glm5::amx
