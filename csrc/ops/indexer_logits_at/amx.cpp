// indexer_logits_at with AMX; its gradient is that of AVX-512.
#include "cpu/indexer_amx.h"
#include "ops/indexer_logits_at/items.h"

namespace glm5::amx {

void indexer_logits_at(const IndexerLogitsAtArgs& args, i64 begin, i64 end, i64 thread) {
  at::score_tokens<Scorer>(args, begin, end, thread);
}

}  // namespace glm5::amx
