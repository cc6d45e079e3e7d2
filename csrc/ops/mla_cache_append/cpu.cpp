#include "core/cache_check.h"
#include "cpu/isa.h"
#include "ops/mla_cache_append/mla_cache_append.h"

namespace glm5 {

namespace generic {
void mla_cache_append(const MlaCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void mla_cache_append(const MlaCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void mla_cache_append(const MlaCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
#endif

// Everything is looked at before anything is stored.
void mla_cache_append_cpu(const MlaCacheAppendArgs& args) {
  check_cache_slots("mla_cache_append", args.cache_slots, args.cache.slots());
  check_positions("mla_cache_append", args.positions, args.cos_sin.shape[0]);
  static constexpr cpu::Implementation<MlaCacheAppendArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::mla_cache_append},
      {cpu::Isa::avx2, avx2::mla_cache_append},
#endif
      {cpu::Isa::generic, generic::mla_cache_append},
  };
  cpu::run_best(implementations, args, args.kv.shape[0], 16);  // 16 tokens: some 10 us, more than waking a thread costs
}

}  // namespace glm5
