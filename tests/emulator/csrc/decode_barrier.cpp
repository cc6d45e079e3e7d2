// bar, barrier, barrier.cluster, membar. PTX ISA 9.7.13.
#include "agents.h"
#include "decoder.h"
#include "lanes.h"
#include "report.h"
#include "scheduler.h"
#include "specials.h"

namespace glm5::emulator {
namespace {

enum class Reduction : u32 { none, popc, all, any };
enum Detail : u32 { kArrive = 4, kAligned = 8, kCounted = 16 };

u32 live_threads(const Cta& cta) {
  u32 warps = 0;
  for (const auto& warp : cta.warps) warps += warp->done() ? 0 : 1;
  return warps * kLanes;
}

void complete(Cta& cta, NamedBarrier& barrier) {
  barrier.last_votes = barrier.votes;
  barrier.last_voters = barrier.voters;
  barrier.votes = barrier.voters = barrier.arrived = barrier.expected = 0;
  barrier.expects_all = false;
  ++barrier.generation;
  wake(*cta.cluster);
}

void arrive(Warp& warp, const Instruction& in, u32 mask, u32 number) {
  Cta& cta = *warp.cta;
  NamedBarrier& barrier = cta.barriers[number];
  const bool counted = in.detail & kCounted;
  const u32 expected = counted ? row<u32>(warp, in.b)[first_lane(mask)] : 0;
  if (counted && (expected == 0 || expected % kLanes != 0))
    fault(warp, first_lane(mask), "barrier", "barrier ", number, " is asked to wait for ", expected,
          " threads, which is no positive multiple of 32");
  if (counted && expected > cta.warps.size() * kLanes)
    fault(warp, first_lane(mask), "barrier", "barrier ", number, " waits for ", expected, " threads; the block has ",
          cta.warps.size() * kLanes);
  if (barrier.arrived > 0 && (barrier.expects_all != !counted || (counted && barrier.expected != expected)))
    fault(warp, first_lane(mask), "barrier", "barrier ", number, " is used with ",
          counted ? expected : live_threads(cta), " threads while others wait there for ",
          barrier.expects_all ? live_threads(cta) : barrier.expected);
  barrier.expected = expected;
  barrier.expects_all = !counted;
  barrier.arrived += kLanes;
  if (agents().on_release) agents().on_release(warp, kAllLanes, barrier_key(cta, number));
  if (counted && barrier.arrived > barrier.expected)
    fault(warp, first_lane(mask), "barrier", "more than ", barrier.expected, " threads arrived at barrier ", number);
}

Step run_barrier(Warp& warp, const Instruction& in, u32 mask) {
  Group& group = *warp.group;
  Cta& cta = *warp.cta;
  const u32 number = row<u32>(warp, in.a)[first_lane(mask)];
  if (number >= 16) fault(warp, first_lane(mask), "barrier", "barrier ", number, " does not exist; there are 16");
  NamedBarrier& barrier = cta.barriers[number];
  const auto reduction = static_cast<Reduction>(in.detail & 3);
  if (group.wait.ticket == 0) {
    if (must_converge_aligned(warp, mask)) return Step::blocked;
    const u64 generation = barrier.generation;
    if (reduction != Reduction::none) {
      const u32 votes = (predicate(warp, in.c) ^ static_cast<u32>(in.offset)) & mask;
      barrier.votes += static_cast<u32>(__builtin_popcount(votes));
      barrier.voters += static_cast<u32>(__builtin_popcount(mask));
    }
    arrive(warp, in, mask, number);
    settle_barriers(cta);
    if (in.detail & kArrive) {
      wake(*cta.cluster);
      return Step::next;
    }
    group.wait = {WaitKind::barrier, number, 0, generation};
  }
  if (barrier.generation == group.wait.ticket) return Step::blocked;
  group.wait = {};
  if (agents().on_acquire) agents().on_acquire(warp, kAllLanes, barrier_key(cta, number));
  switch (reduction) {
    case Reduction::none: break;
    case Reduction::popc:
      compute(row<u32>(warp, in.d), mask, [&](int) { return barrier.last_votes; });
      break;
    case Reduction::all:
      set_predicate(warp, in.d, mask, barrier.last_votes == barrier.last_voters ? kAllLanes : 0);
      break;
    case Reduction::any: set_predicate(warp, in.d, mask, barrier.last_votes ? kAllLanes : 0);
  }
  return Step::next;
}

// bar.warp.sync: lanes may come from different places; those that are there wait for the others of the member mask.
Step run_warp_sync(Warp& warp, const Instruction& in, u32 mask) {
  const u32 members = row<u32>(warp, in.a)[first_lane(mask)] & warp.live;
  if (mask & warp.live & ~members)
    fault(warp, first_lane(mask & ~members), "divergence",
          "a lane executes bar.warp.sync without being in its member mask");
  Group& group = *warp.group;
  u32 present = mask;
  for (const Group& other : warp.groups)
    if (&other != &group && other.wait.kind == WaitKind::converge && other.wait.ticket == 1 &&
        other.wait.parity == members)
      present |= other.mask;
  if (group.wait.ticket == 2) {
    group.wait = {};
    return Step::next;
  }
  if ((present & members) != members) {
    group.wait = {WaitKind::converge, 0, members, 1};
    return Step::blocked;
  }
  for (Group& other : warp.groups)
    if (&other != &group && other.wait.kind == WaitKind::converge && other.wait.ticket == 1 &&
        other.wait.parity == members)
      other.wait.ticket = 2;
  if (agents().on_meeting) agents().on_meeting(warp, members);
  group.wait = {};
  wake(cluster_of(warp));
  return Step::next;
}

void decode_barrier(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "arrive", "red", "popc", "and", "or", "aligned", "cta"});
  in.detail = kAligned;
  size_t at = 0;
  if (decoder.has("red")) {
    const bool is_count = decoder.has("popc");
    in.detail |= static_cast<u32>(is_count ? Reduction::popc : decoder.has("and") ? Reduction::all : Reduction::any);
    in.d = decoder.write(text.operands[at++], is_count ? Type::u32 : Type::pred);
    const TextOperand& vote = text.operands.back();
    in.c = decoder.read(vote, Type::pred);
    in.offset = vote.negated ? -1 : 0;
  }
  if (decoder.has("arrive")) in.detail |= kArrive;
  in.a = decoder.read(text.operands[at++], Type::u32);
  const size_t last = text.operands.size() - (decoder.has("red") ? 1 : 0);
  if (at < last) {
    in.detail |= kCounted;
    in.b = decoder.read(text.operands[at], Type::u32);
  } else if (decoder.has("arrive")) {
    decoder.fail("arrive needs a number of threads");
  }
  in.execute = run_barrier;
}

void decode_warp_sync(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(1, 1);
  in.a = decoder.read(text.operands[0], Type::u32);
  in.execute = run_warp_sync;
}

Step run_cluster_arrive(Warp& warp, const Instruction& in, u32 mask) {
  if (in.detail & kAligned && must_converge_aligned(warp, mask)) return Step::blocked;
  if (const u32 twice = warp.cluster_unwaited & mask)
    fault(warp, first_lane(twice), "barrier", "barrier.cluster.arrive twice without a wait between");
  if (agents().on_release) agents().on_release(warp, mask, cluster_barrier_key(cluster_of(warp)));
  warp.cluster_arrived |= mask;
  warp.cluster_unwaited |= mask;
  settle_cluster_barrier(cluster_of(warp));
  return Step::next;
}

Step run_cluster_wait(Warp& warp, const Instruction& in, u32 mask) {
  if (in.detail & kAligned && must_converge_aligned(warp, mask)) return Step::blocked;
  if (const u32 early = mask & ~warp.cluster_unwaited)
    fault(warp, first_lane(early), "barrier", "barrier.cluster.wait without an arrive before it");
  if (warp.cluster_arrived & mask) {
    warp.group->wait = {WaitKind::cluster_barrier, 0, 0, 0};
    return Step::blocked;
  }
  warp.cluster_unwaited &= ~mask;
  warp.group->wait = {};
  if (agents().on_acquire) agents().on_acquire(warp, mask, cluster_barrier_key(cluster_of(warp)));
  return Step::next;
}

void decode_cluster(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.allow({"cluster", "arrive", "wait", "aligned", "release", "acquire", "relaxed"});
  in.detail = decoder.has("aligned") ? u32{kAligned} : 0;
  in.execute = decoder.has("arrive") ? run_cluster_arrive : run_cluster_wait;
}

// Memory is sequentially consistent here: nothing to do but to be a place where the order is right.
Step run_nothing(Warp&, const Instruction&, u32) { return Step::next; }
void decode_membar(Decoder&, const TextInstruction&, Instruction& in) { in.execute = run_nothing; }

constexpr Entry kEntries[] = {
    {"bar", "9.7.13.1", decode_barrier, Class::synchronisation},
    {"barrier", "9.7.13.1", decode_barrier, Class::synchronisation},
    {"bar.warp.sync", "9.7.13.2", decode_warp_sync, Class::synchronisation},
    {"barrier.cluster", "9.7.13.3", decode_cluster, Class::synchronisation},
    {"membar", "9.7.13.4", decode_membar, Class::synchronisation},
};

}  // namespace

std::span<const Entry> barrier_entries() { return kEntries; }

void settle_barriers(Cta& cta) {
  const u32 live = live_threads(cta);
  for (NamedBarrier& barrier : cta.barriers) {
    if (barrier.arrived == 0) continue;
    if (barrier.arrived >= (barrier.expects_all ? live : barrier.expected)) complete(cta, barrier);
  }
}

void settle_cluster_barrier(Cluster& cluster) {
  bool anybody = false;
  for (const auto& cta : cluster.ctas) {
    for (const auto& warp : cta->warps) {
      if (warp->live & ~warp->cluster_arrived) return;
      anybody = anybody || warp->live != 0;
    }
  }
  if (!anybody) return;
  for (const auto& cta : cluster.ctas)
    for (const auto& warp : cta->warps) warp->cluster_arrived = 0;
  ++cluster.barrier_generation;
  wake(cluster);
}

}  // namespace glm5::emulator
