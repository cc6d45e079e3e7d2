// The work of grouped_gemm on the CPU: one product for each expert, and all their items in one list, so that few rows
// for each expert still keep every thread busy, and nobody waits between experts.
#pragma once

#include "core/gemm_args.h"
#include "cpu/gemm.h"

namespace glm5::grouped_gemm {

// A part of one expert's product, and where its items stand in the lists of the two phases.
template <class Args>
struct Group {
  cpu::GemmTask<Args> task;
  i64 first_pack_item, first_item;
};

template <class Args>
struct Groups {
  const Group<Args>* groups;  // [count + 1]: the last one only ends the lists
  i64 count;
  const i64* cuts;  // piece p multiplies the items cuts[p] .. cuts[p+1]: experts differ, pieces cost about the same
};

// Calls run(task, begin, end) for each group with a share of the items [begin, end) of a list.
template <class Args, class Run>
GLM5_INLINE void for_items(const Groups<Args>& work, i64 Group<Args>::*first, i64 begin, i64 end, const Run& run) {
  i64 low = 0, high = work.count;  // the last group that starts at or before begin
  while (high - low > 1) {
    const i64 middle = (low + high) / 2;
    (work.groups[middle].*first > begin ? high : low) = middle;
  }
  for (i64 g = low; g < work.count && work.groups[g].*first < end; ++g) {
    const i64 start = work.groups[g].*first, stop = work.groups[g + 1].*first;
    const i64 from = larger(begin, start), to = smaller(end, stop);
    if (from < to) run(work.groups[g].task, from - start, to - start);
  }
}

template <class Args, class Run>
GLM5_INLINE void for_pack_items(const Groups<Args>& work, i64 begin, i64 end, const Run& run) {
  for_items(work, &Group<Args>::first_pack_item, begin, end, run);
}

template <class Args, class Run>
GLM5_INLINE void for_pieces(const Groups<Args>& work, i64 begin, i64 end, const Run& run) {
  for_items(work, &Group<Args>::first_item, work.cuts[begin], work.cuts[end], run);
}

}  // namespace glm5::grouped_gemm
