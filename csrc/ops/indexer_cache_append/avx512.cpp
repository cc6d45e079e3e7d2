#include "ops/indexer_cache_append/kernel.h"

namespace glm5::avx512 {

void indexer_cache_append(const IndexerCacheAppendArgs& args, i64 begin, i64 end, i64) {
  indexer_cache::append(args, begin, end);
}

}  // namespace glm5::avx512
