#include "core/cache_check.h"
#include "cpu/isa.h"
#include "ops/indexer_cache_append/indexer_cache_append.h"

namespace glm5 {

namespace generic {
void indexer_cache_append(const IndexerCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void indexer_cache_append(const IndexerCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void indexer_cache_append(const IndexerCacheAppendArgs&, i64 begin, i64 end, i64 thread);
}
#endif

// Everything is looked at before anything is stored.
void indexer_cache_append_cpu(const IndexerCacheAppendArgs& args) {
  check_cache_slots("indexer_cache_append", args.cache_slots, pages_of(args) * kPage);
  check_positions("indexer_cache_append", args.positions, args.cos_sin.shape[0]);
  static constexpr cpu::Implementation<IndexerCacheAppendArgs> implementations[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::indexer_cache_append},
    {cpu::Isa::avx2, avx2::indexer_cache_append},
#endif
    {cpu::Isa::generic, generic::indexer_cache_append},
  };
  cpu::run_best(implementations, args, args.k.shape[0], 64);  // 64 tokens: some 10 us, more than waking a thread costs
}

}  // namespace glm5
