// How the CPU kernels cut the work, alike for all instruction sets. Many rows: an item is a row, from scores to results.
// Fewer rows than threads: rows are cut into parts; an item is a part, whose best `keep` go to the workspace, and in a
// second phase the parts of a row, which follow one another by index, are one list of candidates.
//
// Floor: one read of the scores. Of a row in random order a candidate buffer of 4 * topk sees about topk + 3 * topk /
// sqrt(1024 * topk / keys) keys; all else stays in the second-level cache.
#pragma once

#include "cpu/float_environment.h"
#include "cpu/topk.h"
#include "ops/topk_select/topk_select.h"

namespace glm5::topk {

constexpr i64 kLeastPart = 8192;  // keys of a part, unless the row is the last one's whole

// What a kernel is given: the op's arguments and how they were cut.
struct Work {
  TopkSelectArgs args;
  i64 parts;    // of a row
  i64 threads;
};

GLM5_INLINE i64 parts_of(i64 rows, i64 keys, i64 threads) {
  if (rows == 0 || rows >= threads) return 1;
  return larger(1, smaller(ceil_div(threads, rows), keys / kLeastPart));
}

GLM5_INLINE i64 keep_of(i64 topk, bool margins) { return topk + margins; }

// A part in the workspace: its count, then orders and indices.
GLM5_INLINE i64 part_entries(i64 keep, i64 keys, i64 parts) {
  return round_up(smaller(keep, ceil_div(keys, parts)), 16);
}
GLM5_INLINE i64 row_bytes(i64 keep, i64 keys, i64 parts) {
  return parts * (2 * part_entries(keep, keys, parts) + 16) * i64{sizeof(i32)};
}

GLM5_INLINE i64 workspace_bytes(i64 rows, i64 keys, i64 keep, i64 parts, i64 threads) {
  const i64 streams = threads * cpu::topk_buffer_bytes(keep, keys);
  return streams + (parts > 1 ? rows * row_bytes(keep, keys, parts) + 64 : 0);
}

// The parts of one row: [part] counts, then all orders, then all indices, a part behind the other.
struct RowParts {
  i32* counts;
  i32* orders;
  i32* indices;
  i64 entries;  // of a part

  GLM5_INLINE RowParts(const Work& work, i64 row) {
    const TopkSelectArgs& args = work.args;
    const i64 keep = keep_of(args.indices.shape[1], args.margins.shape[0] > 0), keys = args.scores.shape[1];
    u8* begin = args.workspace.data + work.threads * cpu::topk_buffer_bytes(keep, keys);
    begin = reinterpret_cast<u8*>((reinterpret_cast<u64>(begin) + 63) & ~u64{63});
    entries = part_entries(keep, keys, work.parts);
    counts = reinterpret_cast<i32*>(begin + row * row_bytes(keep, keys, work.parts));
    orders = counts + 16 * work.parts;
    indices = orders + work.parts * entries;
  }
};

GLM5_INLINE TopkWindow window_of(const TopkSelectArgs& args, i64 row) {
  const i64 keys = args.scores.shape[1];
  if (!args.windows.exists()) return {0, keys};
  return {*args.windows.at(row, 0), *args.windows.at(row, 1)};
}

GLM5_INLINE cpu::TopkRow results_of(const TopkSelectArgs& args, i64 row) {
  return {args.indices.at(row, 0), args.indices.shape[1],
          args.block_table.exists() ? args.block_table.at(*args.sequences.at(row), 0) : nullptr,
          args.margins.shape[0] > 0 ? args.margins.at(row) : nullptr,
          args.fingerprints.shape[0] > 0 ? args.fingerprints.at(row) : nullptr};
}

// All candidates of a window, in a stream of the thread's.
template <class Lanes>
GLM5_INLINE cpu::TopkStream candidates_of(const Work& work, i64 row, const TopkWindow& window, i64 thread) {
  const TopkSelectArgs& args = work.args;
  const i64 keep = keep_of(args.indices.shape[1], args.margins.shape[0] > 0), keys = args.scores.shape[1];
  u8* buffer = args.workspace.data + thread * cpu::topk_buffer_bytes(keep, keys);
  const f32* scores = args.scores.at(row, window.begin);
  cpu::TopkStream stream = cpu::topk_begin(buffer, keep, keys);
  cpu::topk_guess<Lanes>(stream, scores, window.size());
  cpu::topk_feed<Lanes>(stream, scores, window.size(), window.begin);
  if (stream.count < smaller(keep, window.size())) {
    cpu::topk_restart(stream);
    cpu::topk_feed<Lanes>(stream, scores, window.size(), window.begin);
  }
  return stream;
}

template <class Lanes>
GLM5_INLINE void select_rows(const Work& work, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  for (i64 item = begin; item < end; ++item) {
    const i64 row = item / work.parts, part = item % work.parts;
    const TopkWindow whole = window_of(work.args, row);
    const TopkWindow window = {whole.begin + whole.size() * part / work.parts,
                               whole.begin + whole.size() * (part + 1) / work.parts};
    cpu::TopkStream stream = candidates_of<Lanes>(work, row, window, thread);
    if (work.parts == 1) {
      cpu::topk_store(cpu::topk_finish<Lanes>(stream, work.args.indices.shape[1]), results_of(work.args, row));
      continue;
    }
    const cpu::TopkChoice best = cpu::topk_finish<Lanes>(stream, stream.keep);
    const RowParts parts(work, row);
    parts.counts[16 * part] = static_cast<i32>(best.count);
    __builtin_memcpy(parts.orders + part * parts.entries, best.orders, best.count * sizeof(i32));
    __builtin_memcpy(parts.indices + part * parts.entries, best.indices, best.count * sizeof(i32));
  }
  cpu::restore_floats(before);
}

// Closes the gaps between the parts of a row and cuts once more.
template <class Lanes>
GLM5_INLINE void merge_rows(const Work& work, i64 begin, i64 end) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 topk = work.args.indices.shape[1], keep = keep_of(topk, work.args.margins.shape[0] > 0);
  for (i64 row = begin; row < end; ++row) {
    const RowParts parts(work, row);
    i64 count = 0;
    for (i64 part = 0; part < work.parts; ++part) {
      const i64 found = parts.counts[16 * part];
      __builtin_memmove(parts.orders + count, parts.orders + part * parts.entries, found * sizeof(i32));
      __builtin_memmove(parts.indices + count, parts.indices + part * parts.entries, found * sizeof(i32));
      count += found;
    }
    cpu::TopkStream stream{parts.orders, parts.indices, count, keep, count, count, 0.0f, 0};
    cpu::topk_store(cpu::topk_finish<Lanes>(stream, topk), results_of(work.args, row));
  }
  cpu::restore_floats(before);
}

}  // namespace glm5::topk
