// indexer_topk with AVX-512.
#include "cpu/avx512.h"
#include "cpu/indexer_vectors.h"
#include "cpu/topk_avx512.h"
#include "ops/indexer_topk/items.h"

namespace glm5::avx512 {

void indexer_topk(const indexer_topk::Work& work, i64 begin, i64 end, i64 thread) {
  indexer_topk::select_items<indexer_vectors::Scorer<Lanes>, TopkLanes>(work, begin, end, thread);
}

void indexer_topk_merge(const indexer_topk::Work& work, i64 begin, i64 end, i64) {
  indexer_topk::merge_items<TopkLanes>(work, begin, end);
}

}  // namespace glm5::avx512
