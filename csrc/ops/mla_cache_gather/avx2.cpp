#include "ops/mla_cache_gather/kernel.h"

namespace glm5::avx2 {

void mla_cache_gather(const MlaCacheGatherArgs& args, i64 begin, i64 end, i64) {
  mla_cache::gather(args, begin, end);
}

}  // namespace glm5::avx2
