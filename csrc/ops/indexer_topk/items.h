// How every CPU kernel of indexer_topk walks through its items: a group of tokens, which scores a chunk of keys at a
// time into the L2 cache and feeds each token's stream of candidates (cpu/topk.h) from there. Where groups are fewer
// than threads want, the chunks of a group are shared out in parts, and a second phase merges these.
#pragma once

#include "cpu/float_environment.h"
#include "cpu/indexer.h"
#include "cpu/topk_parts.h"
#include "ops/indexer_topk/indexer_topk.h"

namespace glm5::indexer_topk {

// The cut of one call.
struct Cut {
  cpu::IndexerShape shape;
  i64 tokens, keys, keep;
  i64 group, parts;  // tokens of a group; parts of its keys
  i64 threads;

  GLM5_INLINE Cut(const cpu::IndexerShape& shape, i64 tokens, i64 keys, i64 keep, i64 threads)
      : shape(shape), tokens(tokens), keys(keys), keep(keep), threads(threads) {
    const i64 wanted = threads == 1 ? 1 : 2 * threads;  // items
    group = larger(1, smaller(shape.group(), tokens / wanted));
    parts = larger(1, smaller(ceil_div(wanted, larger(1, groups())), chunks()));
  }
  GLM5_INLINE i64 groups() const { return ceil_div(tokens, group); }
  GLM5_INLINE i64 chunks() const { return ceil_div(keys, cpu::kIndexerKeys); }
  GLM5_INLINE i64 part_keys() const { return ceil_div(chunks(), parts) * cpu::kIndexerKeys; }

  // Of the workspace: for each thread a scorer's scratch, the scores of a chunk and the streams of a group; then, with
  // parts, the lists of every token.
  GLM5_INLINE i64 scratch_bytes() const { return cpu::indexer_workspace_size(shape, threads); }
  GLM5_INLINE i64 score_bytes() const { return group * cpu::kIndexerKeys * 4; }
  GLM5_INLINE i64 stream_bytes() const { return cpu::topk_buffer_bytes(keep, keys); }
  GLM5_INLINE i64 thread_bytes() const { return score_bytes() + group * stream_bytes(); }
  GLM5_INLINE i64 list_bytes() const { return cpu::TopkParts::bytes(parts, keep, part_keys()); }
  GLM5_INLINE i64 workspace_bytes() const {
    return scratch_bytes() + 64 + threads * thread_bytes() + (parts > 1 ? 64 + tokens * list_bytes() : 0);
  }
};

// What a kernel is given.
struct Work {
  IndexerTopkArgs args;
  Cut cut;

  GLM5_INLINE i64 topk() const { return args.indices.shape[1]; }
  GLM5_INLINE u8* aligned(i64 bytes) const {
    return reinterpret_cast<u8*>((reinterpret_cast<u64>(args.workspace.data + bytes) + 63) & ~u64{63});
  }
  GLM5_INLINE u8* thread_memory(i64 thread) const { return aligned(cut.scratch_bytes()) + thread * cut.thread_bytes(); }
  GLM5_INLINE cpu::TopkParts lists(i64 token) const {
    u8* all = aligned(cut.scratch_bytes() + 64 + cut.threads * cut.thread_bytes());
    return {all + token * cut.list_bytes(), cut.parts, cut.keep, cut.part_keys()};
  }
  GLM5_INLINE cpu::TopkRow results(i64 token) const {
    const IndexerOperands& operands = args.operands;
    return {args.indices.at(token, 0), topk(),
            args.physical ? operands.block_table.at(*operands.sequences.at(token), 0) : nullptr,
            args.margins.shape[0] > 0 ? args.margins.at(token) : nullptr,
            args.fingerprints.shape[0] > 0 ? args.fingerprints.at(token) : nullptr};
  }
};

// The chunks of keys that a group's part has to look at.
struct Chunks {
  i64 begin, end;

  GLM5_INLINE Chunks(const Work& work, i64 first_token, i64 tokens, i64 part) : begin(0), end(0) {
    const cpu::IndexerItem all{first_token, tokens, 0, work.cut.keys};
    const cpu::KeySpan span = cpu::indexer_span_of_all(work.args.operands, all, first_token, first_token + tokens);
    if (span.is_empty()) return;
    const i64 first = span.begin / cpu::kIndexerKeys, count = ceil_div(span.end, cpu::kIndexerKeys) - first;
    begin = first + count * part / work.cut.parts;
    end = first + count * (part + 1) / work.cut.parts;
  }
};

// Scores are flushed to zero where they are subnormal, so that flushing does not show in their order; margins are
// differences in the default mode.
template <class Scorer, class Lanes>
GLM5_INLINE void select_items(const Work& work, i64 begin, i64 end, i64 thread) {
  const IndexerOperands& operands = work.args.operands;
  const Cut& cut = work.cut;
  const cpu::FloatState before = cpu::use_default_floats();
  const cpu::IndexerScratch scratch(work.args.workspace, cut.shape, thread);
  const cpu::ScoreRows scores{reinterpret_cast<f32*>(work.thread_memory(thread)), cpu::kIndexerKeys};
  u8* buffers = work.thread_memory(thread) + cut.score_bytes();
  for (i64 i = begin; i < end; ++i) {
    // Late tokens, which see most keys in a causal window, come first.
    const i64 first = (cut.groups() - 1 - i / cut.parts) * cut.group, part = i % cut.parts;
    const i64 tokens = smaller(cut.group, cut.tokens - first);
    cpu::TopkStream streams[cpu::kIndexerMostTokens];
    for (i64 t = 0; t < tokens; ++t) streams[t] = cpu::topk_begin(buffers + t * cut.stream_bytes(), cut.keep, cut.keys);
    const Chunks chunks(work, first, tokens, part);
    const cpu::FloatState defaults = cpu::use_flushing_floats();
    for (i64 chunk = chunks.begin; chunk < chunks.end; ++chunk) {
      const i64 key = chunk * cpu::kIndexerKeys;
      const cpu::IndexerItem item{first, tokens, key, smaller(cpu::kIndexerKeys, cut.keys - key)};
      Scorer::score(operands, item, scratch, scores);
      for (i64 t = 0; t < tokens; ++t) {
        const cpu::KeySpan span = cpu::indexer_span(operands, first + t, key, item.keys);
        if (span.is_empty()) continue;
        const f32* row = scores.of(item, first + t) + span.begin - key;
        cpu::topk_feed<Lanes>(streams[t], row, span.end - span.begin, span.begin);
      }
    }
    cpu::restore_floats(defaults);
    for (i64 t = 0; t < tokens; ++t) {
      if (cut.parts > 1) {
        work.lists(first + t).put(part, cpu::topk_finish<Lanes>(streams[t], cut.keep));
      } else {
        cpu::topk_store(cpu::topk_finish<Lanes>(streams[t], work.topk()), work.results(first + t));
      }
    }
  }
  cpu::restore_floats(before);
}

template <class Lanes>
GLM5_INLINE void merge_items(const Work& work, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 token = begin; token < end; ++token) {
    cpu::TopkStream stream = work.lists(token).take(work.cut.keep);
    cpu::topk_store(cpu::topk_finish<Lanes>(stream, work.topk()), work.results(token));
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::indexer_topk
