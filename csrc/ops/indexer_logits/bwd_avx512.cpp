// The gradient of indexer_logits with AVX-512.
#include "cpu/avx512.h"
#include "ops/indexer_logits/bwd_vectors.h"

namespace glm5::avx512 {

void indexer_logits_bwd_queries(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  indexer_logits_bwd::query_gradients<Lanes>(args, begin, end, thread);
}

void indexer_logits_bwd_keys(const IndexerLogitsBwdArgs& args, i64 begin, i64 end, i64 thread) {
  indexer_logits_bwd::key_gradients<Lanes>(args, begin, end, thread);
}

}  // namespace glm5::avx512
