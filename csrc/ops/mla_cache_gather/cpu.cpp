#include "core/cache_check.h"
#include "cpu/isa.h"
#include "ops/mla_cache_gather/mla_cache_gather.h"

namespace glm5 {

namespace generic {
void mla_cache_gather(const MlaCacheGatherArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void mla_cache_gather(const MlaCacheGatherArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void mla_cache_gather(const MlaCacheGatherArgs&, i64 begin, i64 end, i64 thread);
}
#endif

void mla_cache_gather_cpu(const MlaCacheGatherArgs& args) {
  check_cache_slots("mla_cache_gather", args.cache_slots, args.cache.slots());
  static constexpr cpu::Implementation<MlaCacheGatherArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::mla_cache_gather},
      {cpu::Isa::avx2, avx2::mla_cache_gather},
#endif
      {cpu::Isa::generic, generic::mla_cache_gather},
  };
  cpu::run_best(implementations, args, args.out.shape[0], 64);  // 64 rows: some 10 us, more than waking a thread costs
}

}  // namespace glm5
