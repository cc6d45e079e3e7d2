// How every CPU kernel of indexer_logits walks through its items.
#pragma once

#include "cpu/float_environment.h"
#include "cpu/indexer.h"
#include "ops/indexer_logits/indexer_logits.h"

namespace glm5 {

template <class Scorer>
GLM5_INLINE void score_items(const IndexerLogitsArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_flushing_floats();
  const IndexerOperands& operands = args.operands;
  const cpu::IndexerShape shape{operands.q.shape[1], operands.q.shape[2], Scorer::kWithAmx};
  const cpu::IndexerScratch scratch(args.workspace, shape, thread);
  for (i64 i = begin; i < end; ++i) {
    const cpu::IndexerItem item = cpu::IndexerItem::of(i, operands.q.shape[0], operands.keys(), shape.group());
    const cpu::ScoreRows scores{args.out.at(item.first_token, item.first_key), args.out.stride[0]};
    for (i64 t = item.first_token; t < item.first_token + item.tokens; ++t) {
      for (i64 s = 0; s < item.keys; ++s) scores.of(item, t)[s] = -__builtin_inff();
    }
    Scorer::score(operands, item, scratch, scores);
  }
  cpu::restore_floats(before);
}

}  // namespace glm5
