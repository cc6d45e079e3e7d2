// indexer_topk on sm_90a: limits, the cut of the work, its workspace, and the kernels for dense keys.
#include "ops/indexer_topk/indexer_topk.h"

#include "ops/indexer_topk/kernel_sm90.cuh"
#include "ops/indexer_topk/launch_sm90.h"

namespace glm5::indexer_topk_sm90 {
namespace {

const char* name_of(const IndexerTopkArgs& args) {
  return args.operands.is_paged ? "indexer_topk_paged" : "indexer_topk";
}

struct Problem {
  i64 tokens, keys, heads, topk;
};

Problem check_limits(const IndexerTopkArgs& args) {
  cuda::check_indexer_limits(args.operands, name_of(args));
  const Problem problem{args.operands.q.shape[0], args.operands.keys(), args.operands.q.shape[1],
                        args.indices.shape[1]};
  require(problem.tokens == 0 || (problem.topk > 0 && args.indices.stride[1] == 1), name_of(args),
          ": indices must be row-major with topk above 0");
  return problem;
}

void run(const IndexerTopkArgs& args, const Problem& problem, const Plan& plan, const cuda::Device& device,
         void* stream) {
  const char* op = name_of(args);
  const i64 needed = workspace_bytes(plan, problem.tokens);
  require(args.workspace.shape[0] >= needed, op, ": workspace must be u8[", needed, "] or longer; got u8[",
          args.workspace.shape[0], "]");
  require(reinterpret_cast<std::uintptr_t>(args.workspace.data) % 16 == 0, op,
          ": workspace must start at a multiple of 16 bytes");
  const i64 left = problem.tokens * plan.cut.splits * plan.slots;
  i32* splits = reinterpret_cast<i32*>(args.workspace.data + plan.buffer_bytes());
  const KernelArgs kernel{.scoring = cuda::indexer_scoring(args.operands, plan.cut, op),
                          .plan = plan,
                          .physical = args.physical,
                          .indices = args.indices,
                          .margins = args.margins,
                          .fingerprints = args.fingerprints,
                          .buffers = reinterpret_cast<i32*>(args.workspace.data),
                          .split_orders = splits,
                          .split_indices = splits + left,
                          .split_left_out = splits + 2 * left};
  const bool is_e4m3 = args.operands.q.is_e4m3;
  if (args.operands.is_paged) return launch_paged(kernel, is_e4m3, problem.heads, device, op, stream);
  launch_heads<false>(kernel, is_e4m3, problem.heads, device, op, stream);
}

}  // namespace

void run_cut(const IndexerTopkArgs& args, int splits, int chunk_tiles, int blocks, void* stream) {
  const Problem problem = check_limits(args);
  require(problem.tokens > 0 && splits > 0 && chunk_tiles > 0 && blocks > 0, name_of(args),
          ": a given cut needs work and sizes above 0");
  const Plan plan = plan_of(problem.tokens, problem.keys, problem.heads, problem.topk, splits, chunk_tiles, blocks);
  run(args, problem, plan, cuda::require_sm90(name_of(args)), stream);
}

}  // namespace glm5::indexer_topk_sm90

namespace glm5 {

void indexer_topk_cuda(const IndexerTopkArgs& args, void* stream) {
  using namespace indexer_topk_sm90;
  const Problem problem = check_limits(args);
  if (problem.tokens == 0) return;
  const cuda::Device device = cuda::require_sm90(name_of(args));
  run(args, problem, choose_plan(problem.tokens, problem.keys, problem.heads, problem.topk), device, stream);
}

}  // namespace glm5
