#include "cpu/isa.h"
#include "ops/moe_route/check.h"

namespace glm5 {

namespace generic {
void moe_route(const MoeRouteArgs&, i64 begin, i64 end, i64 thread);
void moe_route_bwd(const MoeRouteBwdArgs&, i64 begin, i64 end, i64 thread);
}
#if defined(__x86_64__)
namespace avx2 {
void moe_route(const MoeRouteArgs&, i64 begin, i64 end, i64 thread);
void moe_route_bwd(const MoeRouteBwdArgs&, i64 begin, i64 end, i64 thread);
}
namespace avx512 {
void moe_route(const MoeRouteArgs&, i64 begin, i64 end, i64 thread);
void moe_route_bwd(const MoeRouteBwdArgs&, i64 begin, i64 end, i64 thread);
}
#endif

namespace {

constexpr i64 kGrain = 16;  // tokens: some 5 us, more than waking a thread costs

void check_replay(const MoeRouteArgs& args) {
  const i64 experts = args.logits.shape[1], topk = args.experts.shape[1];
  for (i64 token = 0; token < args.experts.shape[0]; ++token) {
    u64 seen[kMostExperts / 64] = {};
    for (i64 k = 0; k < topk; ++k) {
      const i32 expert = args.replayed(token, k);
      const bool routed = args.replayed(token, 0) == -1;
      require(routed ? expert == -1 : 0 <= expert && expert < experts, "moe_route: replay_experts[", token,
              "] must be ids below ", experts, ", or -1 throughout; got ", expert);
      if (routed) continue;
      u64& word = seen[expert / 64];
      require((word >> expert % 64 & 1) == 0, "moe_route: replay_experts[", token, "] must be distinct; got ", expert,
              " twice");
      word |= u64{1} << expert % 64;
    }
  }
}

}  // namespace

void moe_route_cpu(const MoeRouteArgs& args) {
  check_moe_route(args);
  if (args.replays()) check_replay(args);
  static constexpr cpu::Implementation<MoeRouteArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_route},
      {cpu::Isa::avx2, avx2::moe_route},
#endif
      {cpu::Isa::generic, generic::moe_route},
  };
  const i64 tokens = args.experts.shape[0], topk = args.experts.shape[1];
  if (topk > 0) cpu::run_best(implementations, args, tokens, kGrain);
  for (i64 e = 0; e < args.counts.shape[0]; ++e) *args.counts.at(e) = 0;
  for (i64 token = 0; token < tokens; ++token)
    for (i64 k = 0; k < topk; ++k) ++*args.counts.at(*args.experts.at(token, k));
}

void moe_route_bwd_cpu(const MoeRouteBwdArgs& args) {
  check_moe_route_sizes("moe_route_bwd", args.logits.shape[1], args.experts.shape[1]);
  static constexpr cpu::Implementation<MoeRouteBwdArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_route_bwd},
      {cpu::Isa::avx2, avx2::moe_route_bwd},
#endif
      {cpu::Isa::generic, generic::moe_route_bwd},
  };
  cpu::run_best(implementations, args, args.experts.shape[0], kGrain);
}

}  // namespace glm5
