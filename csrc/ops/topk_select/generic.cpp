// topk_select in portable C++: the stream of cpu/topk.h without vectors.
#include "ops/topk_select/rows.h"

namespace glm5::generic {

void topk_select(const topk::Work& work, i64 begin, i64 end, i64 thread) {
  topk::select_rows<cpu::PlainLanes>(work, begin, end, thread);
}

void topk_select_merge(const topk::Work& work, i64 begin, i64 end, i64) {
  topk::merge_rows<cpu::PlainLanes>(work, begin, end);
}

}  // namespace glm5::generic
