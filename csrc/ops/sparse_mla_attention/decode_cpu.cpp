#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/workspace_check.h"
#include "ops/sparse_mla_attention/decode.h"

namespace glm5 {

namespace generic {
void sparse_mla_decode(const sparse_mla::DecodeTask&, i64 begin, i64 end, i64 thread);
}  // namespace generic
#if defined(__x86_64__)
namespace avx2 {
void sparse_mla_decode(const sparse_mla::DecodeTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void sparse_mla_decode(const sparse_mla::DecodeTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
#endif

namespace {

using sparse_mla::DecodeScratch;
using sparse_mla::DecodeTask;
using Pass = DecodeTask::Pass;

// A tile unit rounds its products to bf16, so AMX has no part in this tree: AVX-512 serves it.
constexpr cpu::Implementation<DecodeTask> kDecode[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::sparse_mla_decode},
    {cpu::Isa::avx2, avx2::sparse_mla_decode},
#endif
    {cpu::Isa::generic, generic::sparse_mla_decode},
};

// With fewer tokens than this, tiles are dealt out.
i64 few_tokens() { return cpu::thread_count() == 1 ? 0 : 2 * cpu::thread_count(); }

// Tokens whose tiles are dealt out at a time: enough for all threads.
i64 tokens_at_a_time(i64 tokens, i64 tiles) {
  return smaller(tokens, ceil_div(4 * cpu::thread_count(), larger(1, tiles)));
}

struct DecodePlaces {
  i64 partial_tokens, sums, scratch, end;  // in bytes from the beginning of the workspace, after partial results

  DecodePlaces(i64 tokens, i64 heads, i64 topk) {
    const i64 tiles = ceil_div(topk, sparse_mla::kDecodeTile);
    partial_tokens = tokens < few_tokens() ? tokens_at_a_time(tokens, tiles) : 0;
    const i64 tile_heads = partial_tokens * tiles * heads;
    sums = tile_heads * kMlaLatent * 4;
    scratch = round_up(sums + tile_heads * 8, sparse_mla::kAlign);
    end = scratch + cpu::thread_count() * DecodeScratch::bytes(heads) + sparse_mla::kAlign;
  }
};

}  // namespace

i64 sparse_mla_decode_fast_workspace_bytes(i64 tokens, i64 heads, i64 topk) {
  return DecodePlaces(tokens, heads, topk).end;
}

void sparse_mla_decode_fast_cpu(const SparseMlaAttentionArgs& args) {
  const i64 tokens = args.q.shape[0], topk = args.indices.shape[1];
  const DecodePlaces places(tokens, args.q.shape[1], topk);
  cpu::check_workspace("sparse_mla_decode", args.workspace, places.end);
  sparse_mla::check_pages("sparse_mla_decode", args);
  u8* own = sparse_mla::aligned(args.workspace.data);
  DecodeTask task{args, 0, tokens, Pass::whole, reinterpret_cast<f32*>(own),
                  reinterpret_cast<f32*>(own + places.sums), own + places.scratch};
  if (places.partial_tokens == 0) return cpu::run_best(kDecode, task, task.items());
  for (; task.first_token < tokens; task.first_token += places.partial_tokens) {
    task.tokens = smaller(places.partial_tokens, tokens - task.first_token);
    for (const Pass pass : {Pass::tiles, Pass::merge}) {
      task.pass = pass;
      cpu::run_best(kDecode, task, task.items());
    }
  }
}

}  // namespace glm5
