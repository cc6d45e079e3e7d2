// indexer_logits on sm_90a: limits, the cut of the work, and the kernels for dense keys.
#include "ops/indexer_logits/indexer_logits.h"

#include "ops/indexer_logits/kernel_sm90.cuh"
#include "ops/indexer_logits/launch_sm90.h"

namespace glm5::indexer_logits_sm90 {
namespace {

const char* name_of(const IndexerLogitsArgs& args) {
  return args.operands.is_paged ? "indexer_logits_paged" : "indexer_logits";
}

bool is_empty(const IndexerLogitsArgs& args) { return args.out.shape[0] == 0 || args.out.shape[1] == 0; }

void run(const IndexerLogitsArgs& args, const cuda::IndexerPlan& plan, const cuda::Device& device, void* stream) {
  const char* op = name_of(args);
  const i64 heads = args.operands.q.shape[1];
  const KernelArgs kernel{cuda::indexer_scoring(args.operands, plan, op), args.out};
  const bool is_e4m3 = args.operands.q.is_e4m3;
  if (args.operands.is_paged) return launch_paged(kernel, is_e4m3, heads, device, op, stream);
  launch_heads<false>(kernel, is_e4m3, heads, device, op, stream);
}

}  // namespace

void run_cut(const IndexerLogitsArgs& args, int span_tiles, int blocks, void* stream) {
  cuda::check_indexer_limits(args.operands, name_of(args));
  require(!is_empty(args) && span_tiles > 0 && blocks > 0, name_of(args), ": a given cut needs work and sizes above 0");
  const cuda::Device device = cuda::require_sm90(name_of(args));
  const i64 tokens = args.out.shape[0], keys = args.out.shape[1], heads = args.operands.q.shape[1];
  run(args, cuda::indexer_plan(tokens, keys, heads, span_tiles, blocks), device, stream);
}

}  // namespace glm5::indexer_logits_sm90

namespace glm5 {

void indexer_logits_cuda(const IndexerLogitsArgs& args, void* stream) {
  using namespace indexer_logits_sm90;
  cuda::check_indexer_limits(args.operands, name_of(args));
  if (is_empty(args)) return;
  const cuda::Device device = cuda::require_sm90(name_of(args));
  const i64 tokens = args.out.shape[0], keys = args.out.shape[1], heads = args.operands.q.shape[1];
  run(args, cuda::indexer_plan(tokens, keys, heads, device.sms), device, stream);
}

}  // namespace glm5
