// The special registers: rows of a warp that are filled when it starts. The last ones have no PTX name; decoders use
// them.
#pragma once

#include <string_view>

#include "program.h"

namespace glm5::emulator {

enum class Special : u32 {
  tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z, ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z,
  laneid, warpid, nwarpid, smid, nsmid, gridid, clusterid_x, clusterid_y, clusterid_z,
  nclusterid_x, nclusterid_y, nclusterid_z, cluster_ctaid_x, cluster_ctaid_y, cluster_ctaid_z,
  cluster_nctaid_x, cluster_nctaid_y, cluster_nctaid_z, cluster_ctarank, cluster_nctarank, is_explicit_cluster,
  lanemask_eq, lanemask_lt, lanemask_le, lanemask_gt, lanemask_ge, dynamic_smem_size, total_smem_size,
  parameters,      // u64: address of the kernel's parameter block
  shared_base,     // u32: the block's window address 0, with its rank
  shared_base_64,  // u64: the same
  local_base,      // u64: each lane's local memory
  carry,           // a mask: the condition code of extended arithmetic
  carry_is_set,    // a mask: the lanes whose condition code means something
  scratch,         // written by `_` destinations
  count
};

constexpr u32 kSpecialRowBytes = 16 * kLanes;

constexpr Operand special_row(Special special) {
  Operand operand;
  operand.offset = static_cast<u32>(special) * kSpecialRowBytes;
  operand.region = static_cast<u32>(Region::specials);
  return operand;
}

struct Cta;
struct Warp;
void fill_specials(Warp& warp);

// "%tid.x" -> its row; false for what is no special register. bytes: per lane (0: a predicate).
bool find_special(std::string_view name, Special& special, int& bytes);

}  // namespace glm5::emulator
