// mla_cache_gather on the CPU: one row after the other.
#pragma once

#include "cpu/cache_rows.h"
#include "cpu/float_environment.h"
#include "ops/mla_cache_gather/mla_cache_gather.h"

namespace glm5::mla_cache {

GLM5_INLINE void gather(const MlaCacheGatherArgs& args, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 row = begin; row < end; ++row) {
    const i64 slot = *args.cache_slots.at(row);
    bf16* out = args.out.at(row, 0);
    if (slot < 0)
      __builtin_memset(out, 0, 2 * kMlaDim);
    else if (args.cache.bytes.exists())
      cpu::decode_latent(args.cache.bytes_of(slot), out);
    else
      __builtin_memcpy(out, args.cache.values_of(slot), 2 * kMlaDim);
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::mla_cache
