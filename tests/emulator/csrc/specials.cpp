#include "specials.h"

#include <algorithm>
#include <cstring>

#include "memory.h"
#include "state.h"

namespace glm5::emulator {
namespace {

struct Named {
  std::string_view name;
  Special special;
  int bytes = 4;
};

constexpr Named kNamed[] = {
    {"%tid.x", Special::tid_x}, {"%tid.y", Special::tid_y}, {"%tid.z", Special::tid_z},
    {"%ntid.x", Special::ntid_x}, {"%ntid.y", Special::ntid_y}, {"%ntid.z", Special::ntid_z},
    {"%ctaid.x", Special::ctaid_x}, {"%ctaid.y", Special::ctaid_y}, {"%ctaid.z", Special::ctaid_z},
    {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
    {"%laneid", Special::laneid}, {"%warpid", Special::warpid}, {"%nwarpid", Special::nwarpid},
    {"%smid", Special::smid}, {"%nsmid", Special::nsmid}, {"%gridid", Special::gridid, 8},
    {"%clusterid.x", Special::clusterid_x}, {"%clusterid.y", Special::clusterid_y},
    {"%clusterid.z", Special::clusterid_z}, {"%nclusterid.x", Special::nclusterid_x},
    {"%nclusterid.y", Special::nclusterid_y}, {"%nclusterid.z", Special::nclusterid_z},
    {"%cluster_ctaid.x", Special::cluster_ctaid_x}, {"%cluster_ctaid.y", Special::cluster_ctaid_y},
    {"%cluster_ctaid.z", Special::cluster_ctaid_z}, {"%cluster_nctaid.x", Special::cluster_nctaid_x},
    {"%cluster_nctaid.y", Special::cluster_nctaid_y}, {"%cluster_nctaid.z", Special::cluster_nctaid_z},
    {"%cluster_ctarank", Special::cluster_ctarank}, {"%cluster_nctarank", Special::cluster_nctarank},
    {"%is_explicit_cluster", Special::is_explicit_cluster, 0},
    {"%lanemask_eq", Special::lanemask_eq}, {"%lanemask_lt", Special::lanemask_lt},
    {"%lanemask_le", Special::lanemask_le}, {"%lanemask_gt", Special::lanemask_gt},
    {"%lanemask_ge", Special::lanemask_ge}, {"%dynamic_smem_size", Special::dynamic_smem_size},
    {"%total_smem_size", Special::total_smem_size},
};

template <class T>
void fill(Warp& warp, Special special, T value) {
  std::fill_n(row<T>(warp, special_row(special)), kLanes, value);
}

void fill_3(Warp& warp, Special x, const u32 (&values)[3]) {
  for (u32 d = 0; d < 3; ++d) fill(warp, static_cast<Special>(static_cast<u32>(x) + d), values[d]);
}

void fill_lanes(Warp& warp, const Grid& grid) {
  u32* tid[3] = {row<u32>(warp, special_row(Special::tid_x)), row<u32>(warp, special_row(Special::tid_y)),
                 row<u32>(warp, special_row(Special::tid_z))};
  u64* local = row<u64>(warp, special_row(Special::local_base));
  for (u32 lane = 0; lane < kLanes; ++lane) {
    const u32 thread = static_cast<u32>(warp.index) * kLanes + lane;
    tid[0][lane] = thread % grid.threads[0];
    tid[1][lane] = thread / grid.threads[0] % grid.threads[1];
    tid[2][lane] = thread / grid.threads[0] / grid.threads[1];
    local[lane] = u64(warp.local) + u64{lane} * warp.program->local_bytes;
    row<u32>(warp, special_row(Special::laneid))[lane] = lane;
    const u32 self = u32{1} << lane;
    row<u32>(warp, special_row(Special::lanemask_eq))[lane] = self;
    row<u32>(warp, special_row(Special::lanemask_lt))[lane] = self - 1;
    row<u32>(warp, special_row(Special::lanemask_le))[lane] = self | (self - 1);
    row<u32>(warp, special_row(Special::lanemask_gt))[lane] = ~(self | (self - 1));
    row<u32>(warp, special_row(Special::lanemask_ge))[lane] = ~(self - 1);
  }
}

}  // namespace

bool find_special(std::string_view name, Special& special, int& bytes) {
  for (const Named& named : kNamed) {
    if (named.name != name) continue;
    special = named.special;
    bytes = named.bytes;
    return true;
  }
  return false;
}

void fill_specials(Warp& warp) {
  const Cta& cta = *warp.cta;
  const Cluster& cluster = *cta.cluster;
  const Grid& grid = *cluster.grid;
  fill_lanes(warp, grid);
  fill_3(warp, Special::ntid_x, grid.threads);
  fill_3(warp, Special::ctaid_x, cta.id);
  fill_3(warp, Special::nctaid_x, grid.blocks);
  fill_3(warp, Special::clusterid_x, cluster.id);
  fill_3(warp, Special::cluster_nctaid_x, grid.cluster_shape);
  u32 clusters[3], place[3];
  for (int d = 0; d < 3; ++d) {
    clusters[d] = grid.blocks[d] / grid.cluster_shape[d];
    place[d] = cta.id[d] % grid.cluster_shape[d];
  }
  fill_3(warp, Special::nclusterid_x, clusters);
  fill_3(warp, Special::cluster_ctaid_x, place);
  constexpr u32 kMultiprocessors = 132;
  fill(warp, Special::warpid, static_cast<u32>(warp.index));
  fill(warp, Special::nwarpid, static_cast<u32>(cta.warps.size()));
  fill(warp, Special::smid, (cta.id[0] + cta.id[1] * grid.blocks[0]) % kMultiprocessors);
  fill(warp, Special::nsmid, kMultiprocessors);
  fill(warp, Special::gridid, u64{1});
  fill(warp, Special::cluster_ctarank, cta.rank);
  fill(warp, Special::cluster_nctarank, grid.cluster_ctas());
  predicate(warp, special_row(Special::is_explicit_cluster)) = grid.cluster_ctas() > 1 ? kAllLanes : 0;
  fill(warp, Special::dynamic_smem_size, grid.dynamic_shared_bytes);
  fill(warp, Special::total_smem_size, cta.shared_end - kFirstShared);
  fill(warp, Special::parameters, u64(grid.parameters));
  fill(warp, Special::shared_base, cta.shared_address);
  fill(warp, Special::shared_base_64, u64{cta.shared_address});
}

}  // namespace glm5::emulator
