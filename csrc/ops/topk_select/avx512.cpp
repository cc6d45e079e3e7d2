// topk_select with AVX-512: comparisons into mask registers, cuts by compression; cpu/topk.h has the story.
#include "cpu/topk_avx512.h"
#include "ops/topk_select/rows.h"

namespace glm5::avx512 {

void topk_select(const topk::Work& work, i64 begin, i64 end, i64 thread) {
  topk::select_rows<TopkLanes>(work, begin, end, thread);
}

void topk_select_merge(const topk::Work& work, i64 begin, i64 end, i64) {
  topk::merge_rows<TopkLanes>(work, begin, end);
}

}  // namespace glm5::avx512
