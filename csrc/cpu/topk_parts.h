// A row of scores whose keys are shared out among threads: each part leaves its best candidates in a list, and the
// lists of a row, one behind the other by index, are cut once more.
#pragma once

#include "cpu/topk.h"

namespace glm5::cpu {

// Lists of one row: [part] counts, a cache line each, then all orders, then all indices.
struct TopkParts {
  i64 parts, entries;  // entries: of a part
  i32* counts;
  i32* orders;
  i32* indices;

  // A part has at most `longest` keys.
  GLM5_INLINE static i64 entries_of(i64 keep, i64 longest) { return round_up(smaller(keep, longest), 16); }
  GLM5_INLINE static i64 bytes(i64 parts, i64 keep, i64 longest) {
    return parts * (2 * entries_of(keep, longest) + 16) * i64{sizeof(i32)};
  }

  GLM5_INLINE TopkParts(u8* row, i64 parts, i64 keep, i64 longest)
      : parts(parts),
        entries(entries_of(keep, longest)),
        counts(reinterpret_cast<i32*>(row)),
        orders(counts + 16 * parts),
        indices(orders + parts * entries) {}

  GLM5_INLINE void put(i64 part, const TopkChoice& best) const {
    counts[16 * part] = static_cast<i32>(best.count);
    __builtin_memcpy(orders + part * entries, best.orders, best.count * sizeof(i32));
    __builtin_memcpy(indices + part * entries, best.indices, best.count * sizeof(i32));
  }

  // Closes the gaps between the lists and makes them the candidates of a stream that is fed.
  GLM5_INLINE TopkStream take(i64 keep) const {
    i64 count = 0;
    for (i64 part = 0; part < parts; ++part) {
      const i64 found = counts[16 * part];
      __builtin_memmove(orders + count, orders + part * entries, found * sizeof(i32));
      __builtin_memmove(indices + count, indices + part * entries, found * sizeof(i32));
      count += found;
    }
    return {orders, indices, count, keep, count, count, 0.0f, 0};
  }
};

}  // namespace glm5::cpu
