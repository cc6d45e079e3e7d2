#include "core/error.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cpu/workspace_check.h"
#include "ops/sparse_mla_attention/bwd.h"

namespace glm5 {

namespace generic {
void sparse_mla_attention(const sparse_mla::Task&, i64 begin, i64 end, i64 thread);
void sparse_mla_attention_bwd(const sparse_mla::Block&, i64 begin, i64 end, i64 thread);
}  // namespace generic
#if defined(__x86_64__)
namespace avx2 {
void sparse_mla_attention(const sparse_mla::Task&, i64 begin, i64 end, i64 thread);
void sparse_mla_attention_bwd(const sparse_mla::Block&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void sparse_mla_attention(const sparse_mla::Task&, i64 begin, i64 end, i64 thread);
void sparse_mla_attention_bwd(const sparse_mla::Block&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void sparse_mla_attention(const sparse_mla::Task&, i64 begin, i64 end, i64 thread);
void sparse_mla_attention_bwd(const sparse_mla::Block&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

constexpr cpu::Implementation<sparse_mla::Task> kAttend[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::sparse_mla_attention},
    {cpu::Isa::avx512, avx512::sparse_mla_attention},
    {cpu::Isa::avx2, avx2::sparse_mla_attention},
#endif
    {cpu::Isa::generic, generic::sparse_mla_attention},
};
// Items are the tokens of a block.
constexpr cpu::Implementation<sparse_mla::Block> kDifferentiate[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::sparse_mla_attention_bwd},
    {cpu::Isa::avx512, avx512::sparse_mla_attention_bwd},
    {cpu::Isa::avx2, avx2::sparse_mla_attention_bwd},
#endif
    {cpu::Isa::generic, generic::sparse_mla_attention_bwd},
};

// All heads of a token share the work on its keys; they are dealt out where tokens are too few for the threads. The
// sum over heads needs them together.
i64 item_heads(i64 tokens, i64 heads, bool with_probabilities) {
  const i64 threads = cpu::thread_count();
  if (threads == 1 || with_probabilities || tokens >= 2 * threads) return heads;
  return smaller(heads, round_up(ceil_div(heads, ceil_div(2 * threads, larger(1, tokens))), sparse_mla::kHeadTile));
}

// Tokens whose rows of d_kv wait at a time: two for each thread, to even them out.
i64 block_tokens(i64 tokens) { return smaller(tokens, 2 * cpu::thread_count()); }

// The workspace of the gradient, in bytes from its beginning.
struct BwdPlaces {
  i64 sums, contributions, d_sink, scratch, end;

  BwdPlaces(i64 tokens, const sparse_mla::BwdSizes& sizes, i64 keys) {
    const i64 padded = round_up(sizes.qk_dim, sparse_mla::kWidestPanel);
    sums = 0;
    contributions = sums + keys * padded * 4;
    d_sink = contributions + block_tokens(tokens) * sparse_mla::padded_topk(sizes.topk) * padded * 4;
    scratch = round_up(d_sink + tokens * sizes.heads * 8, sparse_mla::kAlign);
    end = scratch + cpu::thread_count() * sizes.bytes() + sparse_mla::kAlign;
  }
};

// sums[s] += the rows that a block gives, for the keys that a thread owns, in the order of tokens and places.
void add_contributions(const sparse_mla::Block& block, i64 tokens, f32* sums) {
  const SparseMlaAttentionBwdArgs& args = block.args;
  const i64 keys = args.kv.shape[0], dim = args.q.shape[2], padded = block.padded_dim();
  const i64 ranges = smaller(keys, 4 * cpu::thread_count()), width = ceil_div(keys, larger(ranges, 1));
  cpu::parallel_for(ranges, 1, [&](i64 begin, i64 end, i64) {
    const cpu::FloatState before = cpu::use_flushing_floats();
    for (i64 t = block.first_token; t < block.first_token + tokens; ++t) {
      const i64 length = sparse_mla::row_length(args.indices, args.topk_length, t);
      for (i64 j = 0, present = 0; j < length; ++j) {
        const i64 key = *args.indices.at(t, j);
        if (key < 0 || key >= keys) continue;
        const f32* row = block.contribution(t, present++);
        if (key < begin * width || key >= end * width) continue;
        for (i64 i = 0; i < dim; ++i) sums[key * padded + i] += row[i];
      }
    }
    cpu::restore_floats(before);
  });
}

void store_d_kv(const SparseMlaAttentionBwdArgs& args, const f32* sums, i64 padded) {
  cpu::parallel_for(args.kv.shape[0], 64, [&](i64 begin, i64 end, i64) {
    for (i64 s = begin; s < end; ++s)
      for (i64 i = 0; i < args.q.shape[2]; ++i) *args.d_kv.at(s, i) = to_bf16(sums[s * padded + i]);
  });
}

void store_d_sink(const SparseMlaAttentionBwdArgs& args, const f64* d_sink) {
  const i64 tokens = args.q.shape[0], heads = args.d_sink.shape[0];
  for (i64 h = 0; h < heads; ++h) {
    f64 sum = 0.0;
    for (i64 t = 0; t < tokens; ++t) sum += d_sink[t * heads + h];
    *args.d_sink.at(h) = static_cast<f32>(sum);
  }
}

}  // namespace

void sparse_mla::check_pages(const char* op, const SparseMlaAttentionArgs& args) {
  const i64 pages = args.cache.slots() / kPage;
  if (!args.block_table.exists()) return;
  for (i64 t = 0; t < args.indices.shape[0]; ++t) {
    const i64 sequence = *args.sequences.at(t), length = row_length(args.indices, args.topk_length, t);
    require(0 <= sequence && sequence < args.block_table.shape[0], op, ": sequences[", t,
            "] must be a row of block_table, which has ", args.block_table.shape[0], "; got ", sequence);
    for (i64 j = 0; j < length; ++j) {
      const i64 index = *args.indices.at(t, j), column = index / kPage;
      if (index < 0 || column >= args.block_table.shape[1]) continue;
      const i64 page = *args.block_table.at(sequence, column);
      require(0 <= page && page < pages, op, ": block_table[", sequence, ", ", column,
              "] must be a page of the cache, since indices[", t, ", ", j, "] uses it; got ", page);
    }
  }
}

i64 sparse_mla_attention_workspace_bytes(i64 heads, i64 qk_dim, i64 v_dim, i64 topk) {
  return cpu::thread_count() * sparse_mla::Sizes{heads, qk_dim, v_dim, topk}.bytes() + sparse_mla::kAlign;
}

i64 sparse_mla_decode_workspace_bytes(i64 heads, i64 topk, bool byte_cache) {
  const sparse_mla::Sizes sizes{heads, kMlaDim, kMlaLatent, topk, byte_cache};
  return cpu::thread_count() * sizes.bytes() + sparse_mla::kAlign;
}

i64 sparse_mla_attention_bwd_workspace_bytes(i64 tokens, i64 heads, i64 qk_dim, i64 v_dim, i64 topk, i64 keys) {
  return BwdPlaces(tokens, {heads, qk_dim, v_dim, topk}, keys).end;
}

void sparse_mla_attention_cpu(const SparseMlaAttentionArgs& args) {
  const char* op = args.is_paged ? "sparse_mla_decode" : "sparse_mla_attention";
  const auto& shape = args.q.shape;
  const i64 v_dim = args.out.shape[2], topk = args.indices.shape[1];
  cpu::check_workspace(op, args.workspace,
                       args.is_paged ? sparse_mla_decode_workspace_bytes(shape[1], topk, args.cache.bytes.exists())
                                     : sparse_mla_attention_workspace_bytes(shape[1], shape[2], v_dim, topk));
  sparse_mla::check_pages(op, args);
  const sparse_mla::Task task{args, item_heads(shape[0], shape[1], args.probabilities.shape[0] > 0)};
  cpu::run_best(kAttend, task, shape[0] * task.items_of_token());
}

void sparse_mla_attention_bwd_cpu(const SparseMlaAttentionBwdArgs& args) {
  const i64 tokens = args.q.shape[0], keys = args.kv.shape[0];
  const sparse_mla::BwdSizes sizes{args.q.shape[1], args.q.shape[2], args.out.shape[2], args.indices.shape[1]};
  const BwdPlaces places(tokens, sizes, keys);
  cpu::check_workspace("sparse_mla_attention_bwd", args.workspace, places.end);
  u8* own = sparse_mla::aligned(args.workspace.data);
  f32* sums = reinterpret_cast<f32*>(own + places.sums);
  f64* d_sink = reinterpret_cast<f64*>(own + places.d_sink);
  const i64 padded = round_up(sizes.qk_dim, sparse_mla::kWidestPanel);
  cpu::parallel_for(keys, 256, [&](i64 begin, i64 end, i64) {
    for (i64 i = begin * padded; i < end * padded; ++i) sums[i] = 0;
  });
  const i64 step = larger(1, block_tokens(tokens));
  for (i64 first = 0; first < tokens; first += step) {
    const i64 count = smaller(step, tokens - first);
    const sparse_mla::Block block{args, first, reinterpret_cast<f32*>(own + places.contributions), d_sink,
                                  own + places.scratch};
    cpu::run_best(kDifferentiate, block, count);
    add_contributions(block, count, sums);
  }
  store_d_kv(args, sums, padded);
  store_d_sink(args, d_sink);
}

}  // namespace glm5
