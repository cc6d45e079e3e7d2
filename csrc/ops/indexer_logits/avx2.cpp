// indexer_logits with AVX2: panels of 16 keys, three rows at a time.
#include "cpu/indexer_vectors.h"
#include "ops/indexer_logits/items.h"

namespace glm5::avx2 {

void indexer_logits(const IndexerLogitsArgs& args, i64 begin, i64 end, i64 thread) {
  score_items<indexer_vectors::Scorer<Lanes>>(args, begin, end, thread);
}

}  // namespace glm5::avx2
