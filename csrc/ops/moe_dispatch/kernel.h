// moe_dispatch's rows on the CPU. The first items are tokens, each read once and written to all its rows, past the
// caches where rows are many; then come pieces of 16 rows: their scales, which fill a cache line of each column, and
// zeros for those that no token has.
#pragma once

#include "ops/moe_dispatch/moe_dispatch.h"

namespace glm5::moe_dispatch {

constexpr i64 kPieceRows = 16;  // of an item

namespace {

constexpr i64 kStreamedBytes = 4 << 20;  // no second-level cache holds as much

template <class Copy>
GLM5_INLINE void move_token(const MoeDispatchArgs& args, i64 token, bool streams) {
  for (i64 k = 0; k < args.slots.shape[1]; ++k) {
    const i64 row = *args.slots.at(token, k);
    if (row < 0) continue;
    if (streams)
      Copy::stream(args.rows.at(row, 0), args.x.at(token, 0), args.x.shape[1]);
    else
      __builtin_memcpy(args.rows.at(row, 0), args.x.at(token, 0), args.x.shape[1]);
  }
}

GLM5_INLINE void move_scales(const MoeDispatchArgs& args, i64 begin, i64 end) {
  for (i64 g = 0; g < args.row_scales.shape[1]; ++g) {
    for (i64 row = begin; row < end; ++row) {
      const i64 token = *args.row_tokens.at(row);
      *args.row_scales.at(row, g) = token < 0 ? 0.0f : *args.scales.at(token, g);
    }
  }
}

template <class Copy>
void run(const MoeDispatchArgs& args, i64 begin, i64 end) {
  const i64 tokens = args.slots.shape[0], used = *args.offsets.at(args.offsets.shape[0] - 1);
  const bool streams = args.rows.shape[0] * args.rows.shape[1] >= kStreamedBytes && Copy::can_stream(args.rows);
  for (i64 item = begin; item < end; ++item) {
    if (item < tokens) {
      move_token<Copy>(args, item, streams);
      continue;
    }
    const i64 first = (item - tokens) * kPieceRows, last = smaller(first + kPieceRows, args.rows.shape[0]);
    for (i64 row = larger(first, used); row < last; ++row)
      __builtin_memset(args.rows.at(row, 0), 0, args.rows.shape[1]);
    if (args.scales.exists()) move_scales(args, first, last);
  }
  Copy::fence();
}

// By whole vectors, with memcpy behind them.
template <class Vector>
struct StreamingCopy {
  GLM5_INLINE static bool can_stream(const Tensor<u8, 2>& rows) {
    return reinterpret_cast<std::uintptr_t>(rows.data) % Vector::kBytes == 0 && rows.stride[0] % Vector::kBytes == 0;
  }
  GLM5_INLINE static void stream(u8* to, const u8* from, i64 bytes) {
    i64 i = 0;
    for (; i + 4 * Vector::kBytes <= bytes; i += 4 * Vector::kBytes) {
      typename Vector::u8s x[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) x[j] = Vector::load(from + i + j * Vector::kBytes);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) Vector::stream(to + i + j * Vector::kBytes, x[j]);
    }
    __builtin_memcpy(to + i, from + i, bytes - i);
  }
  GLM5_INLINE static void fence() { Vector::fence(); }
};

}  // namespace
}  // namespace glm5::moe_dispatch
