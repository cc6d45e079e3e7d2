// What the CPU doors of the indexer's ops share: the shape that current kernels cut work by, and the operands' checks.
#pragma once

#include "core/window_check.h"
#include "cpu/indexer.h"
#include "cpu/isa.h"
#include "cpu/workspace_check.h"

namespace glm5::cpu {

inline IndexerShape indexer_shape(i64 heads, i64 dim) { return {heads, dim, current_isa() == Isa::amx}; }

inline void check_indexer_operands(const char* op, const IndexerOperands& operands) {
  check_windows(op, operands.windows, operands.keys());
  if (!operands.is_paged) return;
  const auto address = reinterpret_cast<std::uintptr_t>(operands.cache.data);
  require(address % 4 == 0 && operands.cache.stride[0] % 4 == 0, op,
          ": the pages of cache must lie at multiples of 4 bytes; their distance is ", operands.cache.stride[0]);
  check_block_table(op, operands.block_table, operands.sequences, operands.windows, operands.keys(),
                    operands.cache.shape[0]);
}

}  // namespace glm5::cpu
