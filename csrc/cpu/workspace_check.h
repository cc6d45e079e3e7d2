// What every CPU door with a workspace asks of it.
#pragma once

#include "core/error.h"
#include "cpu/parallel.h"

namespace glm5::cpu {

inline void check_workspace(const char* op, const Tensor<u8, 1>& workspace, i64 needed) {
  require(workspace.shape[0] >= needed, op, ": workspace must be u8[", needed, "] or longer for ", thread_count(),
          " threads; got u8[", workspace.shape[0], "]");
}

}  // namespace glm5::cpu
