// indexer_topk with AMX: scores by tiles, candidates by AVX-512.
#include "cpu/indexer_amx.h"
#include "cpu/topk_avx512.h"
#include "ops/indexer_topk/items.h"

namespace glm5::amx {

void indexer_topk(const indexer_topk::Work& work, i64 begin, i64 end, i64 thread) {
  indexer_topk::select_items<Scorer, avx512::TopkLanes>(work, begin, end, thread);
}

}  // namespace glm5::amx
