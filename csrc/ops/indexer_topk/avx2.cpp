// indexer_topk with AVX2.
#include "cpu/indexer_vectors.h"
#include "cpu/topk_avx2.h"
#include "ops/indexer_topk/items.h"

namespace glm5::avx2 {

void indexer_topk(const indexer_topk::Work& work, i64 begin, i64 end, i64 thread) {
  indexer_topk::select_items<indexer_vectors::Scorer<Lanes>, TopkLanes>(work, begin, end, thread);
}

void indexer_topk_merge(const indexer_topk::Work& work, i64 begin, i64 end, i64) {
  indexer_topk::merge_items<TopkLanes>(work, begin, end);
}

}  // namespace glm5::avx2
