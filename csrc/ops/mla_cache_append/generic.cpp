#include "ops/mla_cache_append/kernel.h"

namespace glm5::generic {

void mla_cache_append(const MlaCacheAppendArgs& args, i64 begin, i64 end, i64) {
  mla_cache::append(args, begin, end);
}

}  // namespace glm5::generic
