#include "cpu/isa.h"
#include "cpu/workspace_check.h"
#include "ops/moe_combine/items.h"

namespace glm5 {

namespace generic {
void moe_combine(const MoeCombineArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_rows(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_weights(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace generic
#if defined(__x86_64__)
namespace avx2 {
void moe_combine(const MoeCombineArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_rows(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_weights(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void moe_combine(const MoeCombineArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_rows(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
void moe_combine_weights(const MoeCombineBwdArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
#endif

namespace {

constexpr i64 kGrainBytes = i64{1} << 16;  // some 5 us, more than waking a thread costs

i64 grain_of(i64 bytes_of_an_item) { return larger(1, kGrainBytes / larger(1, bytes_of_an_item)); }

// Whose each row is; before anything is written. Not worth threads: four bytes for a row of kilobytes.
void find_owners(const MoeCombineBwdArgs& args) {
  const auto owners = owners_of(args);
  for (i64 row = 0; row < owners.shape[0]; ++row) *owners.at(row) = -1;
  for (i64 token = 0; token < args.inputs.tokens(); ++token) {
    for (i64 k = 0; k < args.inputs.topk(); ++k) {
      const i64 row = args.inputs.row_of(token, k);
      if (row < 0) continue;
      const i64 other = *owners.at(row);
      require(other < 0, "moe_combine_bwd: slots must name a row once; row ", row, " is named at [",
              other / larger(1, args.inputs.topk()), ", ", other % larger(1, args.inputs.topk()), "] and [", token,
              ", ", k, "]");
      *owners.at(row) = static_cast<i32>(token * args.inputs.topk() + k);
    }
  }
}

}  // namespace

void moe_combine_cpu(const MoeCombineArgs& args) {
  static constexpr cpu::Implementation<MoeCombineArgs> implementations[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_combine},
      {cpu::Isa::avx2, avx2::moe_combine},
#endif
      {cpu::Isa::generic, generic::moe_combine},
  };
  const i64 strips = moe_combine::strips_of(args.inputs);
  cpu::run_best(implementations, args, args.inputs.tokens() * strips,
                grain_of(2 * smaller(moe_combine::kStrip, args.inputs.hidden()) * args.inputs.topk()));
}

void moe_combine_bwd_cpu(const MoeCombineBwdArgs& args) {
  cpu::check_workspace("moe_combine_bwd", args.workspace, moe_combine_bwd_workspace_bytes(args.inputs.rows.shape[0]));
  static constexpr cpu::Implementation<MoeCombineBwdArgs> rows[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_combine_rows},
      {cpu::Isa::avx2, avx2::moe_combine_rows},
#endif
      {cpu::Isa::generic, generic::moe_combine_rows},
  };
  static constexpr cpu::Implementation<MoeCombineBwdArgs> weights[] = {
#if defined(__x86_64__)
      {cpu::Isa::avx512, avx512::moe_combine_weights},
      {cpu::Isa::avx2, avx2::moe_combine_weights},
#endif
      {cpu::Isa::generic, generic::moe_combine_weights},
  };
  require(args.inputs.tokens() * args.inputs.topk() < (i64{1} << 31),
          "moe_combine_bwd: slots must have fewer than 2^31 places, got ", args.inputs.tokens() * args.inputs.topk());
  find_owners(args);
  const i64 row_bytes = 4 * args.inputs.hidden();
  cpu::run_best(rows, args, args.inputs.rows.shape[0], grain_of(row_bytes));
  if (args.d_weights.exists())
    cpu::run_best(weights, args, args.inputs.tokens(), grain_of(row_bytes * args.inputs.topk()));
}

}  // namespace glm5
