// parallel_for on the OpenMP runtime that the process already has (torch brings one): no second pool of threads.
#pragma once

#include "core/tensor.h"

namespace glm5::cpu {

// A shape of callable that crosses into the C interface of the runtime.
using Piece = void (*)(void* context, i64 begin, i64 end, i64 thread);

// Threads that parallel_for may use: torch.get_num_threads(); 1 where no OpenMP runtime is loaded or inside a region.
i64 thread_count();
void parallel_pieces(i64 items, i64 grain, Piece piece, void* context);

// Calls body(begin, end, thread) on contiguous pieces that cover [0, items), each of `grain` items or more (but the
// last). Pieces are handed out as threads become free, so a body must not care which thread runs it, nor in which
// order. `thread` is 0 .. thread_count() - 1, and no two pieces with the same number run at one time.
template <class Body>
void parallel_for(i64 items, i64 grain, Body body) {
  parallel_pieces(
      items, grain,
      [](void* context, i64 begin, i64 end, i64 thread) { (*static_cast<Body*>(context))(begin, end, thread); }, &body);
}

}  // namespace glm5::cpu
