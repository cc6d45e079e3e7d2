#include "core/error.h"
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
  const i64 tokens = args.k.shape[0], slots = pages_of(args) * kPage;
  for (i64 t = 0; t < tokens; ++t) {
    const i64 slot = *args.cache_slots.at(t), position = *args.positions.at(t);
    require(slot >= -1 && slot < slots, "indexer_cache_append: cache_slots must be -1 or a slot of the cache, 0 .. ",
            slots - 1, "; cache_slots[", t, "] is ", slot);
    require(position >= 0 && position < args.cos_sin.shape[0],
            "indexer_cache_append: positions must be rows of cos_sin, 0 .. ", args.cos_sin.shape[0] - 1, "; positions[",
            t, "] is ", position);
  }
  static constexpr cpu::Implementation<IndexerCacheAppendArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::indexer_cache_append},
      {cpu::Isa::avx2, avx2::indexer_cache_append},
#endif
      {cpu::Isa::generic, generic::indexer_cache_append},
  };
  cpu::run_best(implementations, args, tokens, 64);  // 64 tokens: some 10 us, more than waking a thread costs
}

}  // namespace glm5
