// indexer_logits_at with AVX2.
#include "cpu/avx2.h"
#include "ops/indexer_logits_at/vectors.h"

namespace glm5::avx2 {

void indexer_logits_at(const IndexerLogitsAtArgs& args, i64 begin, i64 end, i64 thread) {
  at::score_tokens<indexer_vectors::Scorer<Lanes>>(args, begin, end, thread);
}

void indexer_logits_at_bwd(const at::Block& block, i64 begin, i64 end, i64 thread) {
  at::differentiate<Lanes>(block, begin, end, thread);
}

}  // namespace glm5::avx2
