// The sort runs on one thread: it touches 8 bytes where moving a row touches thousands.
#include "cpu/isa.h"
#include "ops/moe_dispatch/check.h"
#include "ops/moe_dispatch/kernel.h"

namespace glm5 {

namespace generic {
void moe_dispatch(const MoeDispatchArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void moe_dispatch(const MoeDispatchArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void moe_dispatch(const MoeDispatchArgs&, i64 begin, i64 end, i64 thread);
}
#endif

namespace {

void sort(const MoeDispatchArgs& args) {
  const i64 tokens = args.experts.shape[0], topk = args.experts.shape[1], count = args.offsets.shape[0] - 1;
  i32 next[kMostLocalExperts] = {};
  for (i64 token = 0; token < tokens; ++token)
    for (i64 k = 0; k < topk; ++k)
      if (const i32 expert = args.local(*args.experts.at(token, k)); expert >= 0) ++next[expert];
  i32 sum = 0;
  for (i64 e = 0; e < count; ++e) {
    const i32 size = next[e];
    *args.offsets.at(e) = next[e] = sum;
    sum += size;
  }
  *args.offsets.at(count) = sum;
  for (i64 token = 0; token < tokens; ++token) {
    for (i64 k = 0; k < topk; ++k) {
      const i32 expert = args.local(*args.experts.at(token, k));
      const i32 row = expert < 0 ? -1 : next[expert]++;
      *args.slots.at(token, k) = row;
      if (row >= 0) *args.row_tokens.at(row) = static_cast<i32>(token);
    }
  }
  for (i64 row = sum; row < args.row_tokens.shape[0]; ++row) *args.row_tokens.at(row) = -1;
}

}  // namespace

void moe_dispatch_cpu(const MoeDispatchArgs& args) {
  check_moe_dispatch(args);
  sort(args);
  if (!args.x.exists() || args.rows.shape[1] == 0) return;
  static constexpr cpu::Implementation<MoeDispatchArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_dispatch},
      {cpu::Isa::avx2, avx2::moe_dispatch},
#endif
      {cpu::Isa::generic, generic::moe_dispatch},
  };
  const i64 items = args.experts.shape[0] + ceil_div(args.rows.shape[0], moe_dispatch::kPieceRows);
  cpu::run_best(implementations, args, items, 4);  // tokens: each some 10 us
}

}  // namespace glm5
