// cp.async and its groups, fence.*: decoding and execution. PTX ISA 9.7.9.25, 9.7.13.4.
#include <algorithm>

#include "async_decode.h"
#include "report.h"
#include "traffic.h"

namespace glm5::emulator {
namespace {

struct CopyForm {
  AddressRow to, from;
  u32 bytes = 0;
  bool has_source_bytes = false, has_skip = false;
  Operand source_bytes, skip;
};

Step run_cp_async(Warp& warp, const Instruction& in, u32 mask) {
  const CopyForm& form = *static_cast<const CopyForm*>(in.extra);
  Cluster& cluster = cluster_of(warp);
  AsyncClusterState& state = async_of(cluster);
  AsyncWarpState& mine = async_of(warp);
  OwnCopies& copies = mine.order.cp_async;
  mine.order.start(copies, mask);
  auto segments = std::make_shared<std::vector<Segment>>();
  PendingCopy copy;
  copy.kind = PendingCopy::Kind::cp_async;
  copy.site = site_of(warp, first_lane(mask));
  copy.lanes = mask;
  u64 sources[kLanes];
  u32 reading = 0;
  copy.sequence = ++state.sequence;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u64 to = form.to.host(warp, lane, Space::shared), from = form.from.at(warp, lane);
    u32 source_bytes = form.has_source_bytes ? row<u32>(warp, form.source_bytes)[lane] : form.bytes;
    if (form.has_skip && (predicate(warp, form.skip) >> lane & 1)) source_bytes = 0;
    if (source_bytes > form.bytes)
      fault(warp, lane, "copy", "cp.async reads ", source_bytes, " bytes to write ", form.bytes);
    if (to % form.bytes || (source_bytes && from % form.bytes)) {
      fault(warp, lane, "alignment", "cp.async of ", form.bytes, " bytes between ", Hex{from}, " and shared address ",
            Hex{shared_address(warp, to)}, ": both must be aligned to ", form.bytes);
    }
    check_bytes(warp, lane, Access::write, to, form.bytes);
    if (source_bytes) {
      check_bytes(warp, lane, Access::read, from, source_bytes);
      sources[lane] = from;
      reading |= u32{1} << lane;
    }
    const u32 address = shared_address(warp, to);
    Accessor who = accessor_of(warp, lane);
    who.agent = copies.agent;
    who.clock = copies.clock;
    check_conflict(warp, lane, state.races.write(address, form.bytes, who), "writes by cp.async");
    if (source_bytes) segments->push_back({address, from, source_bytes});
    if (source_bytes < form.bytes) segments->push_back({address + source_bytes, 0, form.bytes - source_bytes});
    copy.group[lane] = mine.copy_groups[lane].open;
  }
  if (cluster.traffic) count_sectors((*cluster.traffic)[Path::cp_async], sources, reading, form.bytes);
  copy.segments = std::move(segments);
  state.pending.push_back(std::move(copy));
  wake(cluster);
  return Step::next;
}

Step run_commit(Warp& warp, const Instruction&, u32 mask) {
  AsyncWarpState& mine = async_of(warp);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    CopyGroups& groups = mine.copy_groups[first_lane(rest)];
    ++groups.open;
    groups.clocks.push_back(mine.order.cp_async.clock);
  }
  return Step::next;
}

// detail: how many committed groups may stay under way; kAll: not even an open one.
constexpr u32 kAll = ~u32{0};

Step run_wait(Warp& warp, const Instruction& in, u32 mask) {
  AsyncWarpState& mine = async_of(warp);
  AsyncClusterState& state = async_of(cluster_of(warp));
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const CopyGroups& groups = mine.copy_groups[lane];
    for (const PendingCopy& copy : state.pending) {
      if (copy.kind != PendingCopy::Kind::cp_async || copy.site.warp != &warp || !(copy.lanes >> lane & 1)) continue;
      if (in.detail != kAll && u64{copy.group[lane]} + in.detail >= groups.open) continue;
      warp.group->wait = {WaitKind::copy_group, 0, in.detail == kAll ? 0 : in.detail, 0};
      return Step::blocked;
    }
    OwnCopies& copies = mine.order.cp_async;
    if (in.detail == kAll)
      mine.order.wait(copies, lane, copies.clock);
    else if (groups.open > in.detail)
      mine.order.wait(copies, lane, groups.clocks[groups.open - in.detail - 1]);
  }
  warp.group->wait = {};
  return Step::next;
}

Step run_nothing(Warp&, const Instruction&, u32) { return Step::next; }

// fence.proxy.async and fence.mbarrier_init: what the warp wrote so far is visible to the async proxy.
enum FenceKind : u32 { kProxy = 1, kBarriers = 2 };
Step run_fence(Warp& warp, const Instruction& in, u32 mask) {
  AsyncWarpState& mine = async_of(warp);
  AsyncClusterState& state = async_of(cluster_of(warp));
  for (auto& [host, barrier] : state.barriers) {
    if (barrier.initialised.agent == mine.number) barrier.needs_fence = false;
  }
  if (!(in.detail & kProxy)) return Step::next;
  WarpOrder& order = mine.order;
  const OwnCopies& copies = order.cp_async;
  ProxyFence fence{.lanes = mask | ~warp.live, .own = order.clock(), .copies = copies.clock};
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u32 known = order.view(lane).of(copies.agent);
    const u32 done = std::max(copies.done[static_cast<size_t>(lane)], known);
    // A lane that has waited for all its copies is not behind, though others have started some since.
    if (copies.last[static_cast<size_t>(lane)] > done) fence.copies = std::min(fence.copies, done);
  }
  const Clocks& done = order.done_by(fence.lanes);
  fence.others = done.of(order.agent());
  fence.others_copies = done.of(order.cp_async.agent);
  state.races.fence(mine.number, fence, done);
  return Step::next;
}

// ---- decoding ----

void decode_cp_async(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow(
      {"async", "ca", "cg", "shared", "shared::cta", "global", "L2::cache_hint", "L2::64B", "L2::128B", "L2::256B"});
  decoder.operands(3, 5);
  CopyForm form;
  form.to = decode_address(decoder, text.operands[0], Space::shared);
  form.from = decode_address(decoder, text.operands[1], Space::global);
  form.bytes = static_cast<u32>(decoder.immediate(text.operands[2]));
  if (form.bytes != 4 && form.bytes != 8 && form.bytes != 16)
    decoder.fail("cp.async copies 4, 8 or 16 bytes, not ", form.bytes);
  if (decoder.has("cg") && form.bytes != 16) decoder.fail("cp.async.cg copies 16 bytes");
  const size_t extra = text.operands.size() - 3 - (decoder.has("L2::cache_hint") ? 1 : 0);
  if (extra == 1 && decoder.declared_type(text.operands[3]) == Type::pred) {
    form.has_skip = true;
    form.skip = decoder.read(text.operands[3], Type::pred);
  } else if (extra == 1) {
    form.has_source_bytes = true;
    form.source_bytes = decoder.read(text.operands[3], Type::u32);
  }
  in.extra = decoder.keep(form);
  in.execute = run_cp_async;
}

void decode_commit(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.operands(0, 0);
  in.execute = run_commit;
}

void decode_wait(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  in.detail = decoder.has("wait_all") ? kAll : static_cast<u32>(decoder.immediate(text.operands[0]));
  in.execute = run_wait;
}

void decode_fence(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.allow({"proxy", "async", "async.global", "async.shared::cta", "shared::cta", "shared::cluster", "global",
                 "alias", "mbarrier_init", "release", "acquire", "acq_rel", "sc", "relaxed", "cta", "cluster", "gpu",
                 "sys"});
  in.execute = run_nothing;
  if (decoder.has("async") && !decoder.has("global")) in.execute = run_fence, in.detail = kProxy;
  if (decoder.has("mbarrier_init")) in.execute = run_fence, in.detail = kBarriers;
}

constexpr Entry kEntries[] = {
    {"cp.async", "9.7.9.25.3.1", decode_cp_async, Class::copy},
    {"cp.async.commit_group", "9.7.9.25.3.2", decode_commit, Class::copy},
    {"cp.async.wait_group", "9.7.9.25.3.3", decode_wait, Class::copy},
    {"cp.async.wait_all", "9.7.9.25.3.3", decode_wait, Class::copy},
    {"fence", "9.7.13.4", decode_fence, Class::synchronisation},
};

}  // namespace

std::span<const Entry> copy_entries() { return kEntries; }

std::span<const Entry> async_entries() {
  static const std::vector<Entry> all = [] {
    std::vector<Entry> entries;
    for (const auto table : {mbarrier_entries(), copy_entries(), bulk_entries(), wgmma_entries(), matrix_entries(),
                             tensor_map_entries()}) {
      entries.insert(entries.end(), table.begin(), table.end());
    }
    return entries;
  }();
  return all;
}

}  // namespace glm5::emulator
