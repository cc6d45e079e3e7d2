// mbarrier.* and cp.async.mbarrier.arrive: decoding and execution. PTX ISA 9.7.13.15.
#include "async_decode.h"
#include "async_state.h"
#include "report.h"

namespace glm5::emulator {

Barrier& barrier_at(Warp& warp, int lane, u64 host) {
  AsyncClusterState& state = async_of(cluster_of(warp));
  const auto found = state.barriers.find(host);
  const BarrierWord word = BarrierWord::from(*reinterpret_cast<const u64*>(host));
  if (found == state.barriers.end() || !word.is_valid) {
    fault(warp, lane, "mbarrier", "there is no mbarrier at shared address ", Hex{shared_address(warp, host)},
          ": it was not initialised", found == state.barriers.end() ? "" : ", or something was written over it");
  }
  Barrier& barrier = found->second;
  if (!async_of(warp).order.knows(lane, barrier.initialised)) {
    fault(warp, lane, "race", "uses the mbarrier at shared address ", Hex{shared_address(warp, host)}, ", which ",
          describe_work(cluster_of(warp), barrier.initialised), " initialised, and nothing orders the two");
  }
  return barrier;
}

std::string describe_barrier(Cluster& cluster, u64 address) {
  const BarrierWord word = BarrierWord::from(*reinterpret_cast<const u64*>(cluster.shared + address));
  std::ostringstream out;
  out << "in phase " << word.phase << ", " << word.pending << " of " << word.expected << " arrivals and " << word.bytes
      << " bytes to come";
  return out.str();
}

namespace {

// Applies a change to the word; what was published so far becomes visible when the phase ends.
template <class Change>
const char* change_word(Cluster& cluster, u64 host, Barrier& barrier, Change change) {
  u64& bits = *reinterpret_cast<u64*>(host);
  BarrierWord word = BarrierWord::from(bits);
  bool completes = false;
  if (const char* wrong = change(word, completes)) return wrong;
  bits = word.bits();
  if (completes) {
    barrier.completed.join(barrier.arriving);
    barrier.arriving.clear();
  }
  wake(cluster);
  return nullptr;
}

std::string words_of(Cluster& cluster, u64 host, const char* wrong) {
  const u64 address = host - u64(cluster.shared);
  std::ostringstream out;
  out << "mbarrier at shared address " << Hex{address} << ": " << wrong << " (" << describe_barrier(cluster, address)
      << ")";
  return out.str();
}

void require_live_block(Cluster& cluster, const Site& site, u64 host) {
  const Cta& cta = *cluster.ctas[(host - u64(cluster.shared)) >> kRankShift];
  for (const auto& warp : cta.warps) {
    if (!warp->done()) return;
  }
  fault_at(site, "cluster", "arrives on an mbarrier of a block that has already exited");
}

}  // namespace

void complete_bytes(Cluster& cluster, const Site& site, u64 host, u32 bytes, const Clocks& view) {
  require_live_block(cluster, site, host);
  auto& barriers = async_of(cluster).barriers;
  const auto found = barriers.find(host);
  if (found == barriers.end() || !BarrierWord::from(*reinterpret_cast<const u64*>(host)).is_valid) {
    fault_at(site, "mbarrier", "the copy completes on what is no longer an mbarrier");
  }
  found->second.arriving.join(view);
  const char* wrong = change_word(cluster, host, found->second, [&](BarrierWord& word, bool& completes) {
    return word.expect(-i64{bytes}, completes);
  });
  if (wrong)
    fault_at(site, "mbarrier", words_of(cluster, host, wrong) + ", when " + std::to_string(bytes) + " more bytes came");
}

void arrive_late(Cluster& cluster, const Site& site, u64 host, const Clocks& view) {
  require_live_block(cluster, site, host);
  Barrier& barrier = barrier_at(*site.warp, site.lane, host);
  barrier.arriving.join(view);
  const char* wrong = change_word(cluster, host, barrier,
                                  [&](BarrierWord& word, bool& completes) { return word.arrive(1, completes); });
  if (wrong) fault_at(site, "mbarrier", words_of(cluster, host, wrong));
}

void require_async_barrier(Warp& warp, int lane, u64 host) {
  const Barrier& barrier = barrier_at(warp, lane, host);
  if (barrier.needs_fence) {
    fault(warp, lane, "proxy", "a copy signals the mbarrier at shared address ", Hex{shared_address(warp, host)},
          ", whose initialisation was followed by neither fence.mbarrier_init nor fence.proxy.async");
  }
}

namespace {

struct BarrierForm {
  AddressRow address;
  Space space = Space::shared;
  Operand state, count, bytes, parity;
  bool writes_state = false, has_count = false, drops = false, expects = false, arrives = false, is_parity = false;
  bool may_block = false, is_late = false, counts_itself = false;
};

const BarrierForm& form_of(const Instruction& in) { return *static_cast<const BarrierForm*>(in.extra); }

template <class F>
void each_barrier(Warp& warp, const BarrierForm& form, u32 mask, F f) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u64 host = form.address.host(warp, lane, form.space);
    if (!is_shared_host(warp, host)) fault(warp, lane, "bounds", "an mbarrier must be in shared memory");
    if (host % 8)
      fault(warp, lane, "alignment", "an mbarrier must be aligned to 8 bytes, got ", Hex{shared_address(warp, host)});
    f(lane, host);
  }
}

Step run_init(Warp& warp, const Instruction& in, u32 mask) {
  const BarrierForm& form = form_of(in);
  each_barrier(warp, form, mask, [&](int lane, u64 host) {
    check_bytes(warp, lane, Access::write, host, 8);
    const u32 count = row<u32>(warp, form.count)[lane];
    if (count == 0 || count > kMostArrivals) {
      fault(warp, lane, "mbarrier", "an mbarrier expects 1 to ", kMostArrivals, " arrivals, got ", count);
    }
    AsyncClusterState& state = async_of(cluster_of(warp));
    const Accessor who = accessor_of(warp, lane);
    async_of(warp).order.note_access(who.lanes);
    check_conflict(warp, lane, state.races.write(shared_address(warp, host), 8, who), "initialises");
    BarrierWord word;
    word.is_valid = true;
    word.pending = word.expected = count;
    *reinterpret_cast<u64*>(host) = word.bits();
    state.barriers[host] = Barrier{.arriving = {}, .completed = {}, .initialised = {who.agent, who.clock, who.lanes}};
  });
  return Step::next;
}

Step run_inval(Warp& warp, const Instruction& in, u32 mask) {
  const BarrierForm& form = form_of(in);
  each_barrier(warp, form, mask, [&](int lane, u64 host) {
    check_bytes(warp, lane, Access::atomic, host, 8);
    barrier_at(warp, lane, host);
    async_of(cluster_of(warp)).barriers.erase(host);
    *reinterpret_cast<u64*>(host) = 0;
  });
  return Step::next;
}

// arrive, arrive_drop, expect_tx, complete_tx and their combinations.
Step run_arrive(Warp& warp, const Instruction& in, u32 mask) {
  const BarrierForm& form = form_of(in);
  Cluster& cluster = cluster_of(warp);
  Clocks done;
  if (form.arrives) done = async_of(warp).order.done_by(mask == warp.live ? kAllLanes : mask);
  each_barrier(warp, form, mask, [&](int lane, u64 host) {
    check_bytes(warp, lane, Access::atomic, host, 8);
    Barrier& barrier = barrier_at(warp, lane, host);
    require_live_block(cluster, site_of(warp, lane), host);
    const u64 before = *reinterpret_cast<const u64*>(host);
    if (form.arrives) barrier.arriving.join(done);
    const u32 count = form.has_count ? row<u32>(warp, form.count)[lane] : 1;
    const i64 bytes = form.expects ? i64{row<i32>(warp, form.bytes)[lane]} * (form.counts_itself ? -1 : 1) : 0;
    const char* wrong = change_word(cluster, host, barrier, [&](BarrierWord& word, bool& completes) {
      if (!form.arrives) return word.expect(bytes, completes);
      return word.arrive_expecting(count, bytes, form.drops, completes);
    });
    if (wrong) fault(warp, lane, "mbarrier", words_of(cluster, host, wrong));
    if (form.writes_state) row<u64>(warp, form.state)[lane] = before;
  });
  return Step::next;
}

Step run_wait(Warp& warp, const Instruction& in, u32 mask) {
  const BarrierForm& form = form_of(in);
  u32 done = 0;
  const Barrier* passed = nullptr;  // the last one: of lanes that wait together nearly always the only one
  Wait wait{.kind = WaitKind::mbarrier};
  each_barrier(warp, form, mask, [&](int lane, u64 host) {
    check_bytes(warp, lane, Access::atomic, host, 8);
    const Barrier& barrier = barrier_at(warp, lane, host);
    const BarrierWord word = BarrierWord::from(*reinterpret_cast<const u64*>(host));
    const u32 parity =
        form.is_parity ? row<u32>(warp, form.parity)[lane] : BarrierWord::from(row<u64>(warp, form.state)[lane]).phase;
    if (form.is_parity && parity > 1) fault(warp, lane, "mbarrier", "a phase parity is 0 or 1, got ", parity);
    if (word.has_passed(parity)) {
      if (passed && passed != &barrier) learn(warp, done, passed->completed);
      done |= u32{1} << lane;
      passed = &barrier;
    } else {
      wait.address = shared_address(warp, host);
      wait.parity = parity;
    }
  });
  if (passed) learn(warp, done, passed->completed);
  bool gave_up = false;
  if (done == 0 && form.may_block) {
    if (!warp.time_out) {
      warp.group->wait = wait;
      return Step::blocked;
    }
    warp.time_out = false;
    gave_up = true;
  }
  warp.group->wait = {};
  u32& bits = predicate(warp, in.d);
  bits = (bits & ~mask) | done;
  return gave_up || (done == 0 && !form.may_block) ? Step::yielded : Step::next;
}

Step run_pending_count(Warp& warp, const Instruction& in, u32 mask) {
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    row<u32>(warp, in.d)[lane] = BarrierWord::from(row<u64>(warp, in.a)[lane]).pending;
  }
  return Step::next;
}

// cp.async.mbarrier.arrive: one arrival per lane once its cp.async so far are done.
Step run_late_arrive(Warp& warp, const Instruction& in, u32 mask) {
  const BarrierForm& form = form_of(in);
  Cluster& cluster = cluster_of(warp);
  AsyncClusterState& state = async_of(cluster);
  PendingCopy arrival;
  arrival.kind = PendingCopy::Kind::arrival;
  arrival.lanes = mask;
  arrival.site = site_of(warp, first_lane(mask));
  arrival.sequence = ++state.sequence;
  WarpOrder& order = async_of(warp).order;
  arrival.view = order.done_by(mask == warp.live ? kAllLanes : mask);
  LaneClocks copied{};
  for (u32 rest = mask; rest; rest &= rest - 1) copied[static_cast<size_t>(first_lane(rest))] = order.cp_async.clock;
  arrival.view.raise(order.cp_async.agent, copied);
  each_barrier(warp, form, mask, [&](int lane, u64 host) {
    check_bytes(warp, lane, Access::atomic, host, 8);
    barrier_at(warp, lane, host);
    arrival.barrier[lane] = host;
    if (!form.counts_itself) return;
    u64& bits = *reinterpret_cast<u64*>(host);
    BarrierWord word = BarrierWord::from(bits);
    ++word.pending;
    bits = word.bits();
  });
  state.pending.push_back(std::move(arrival));
  wake(cluster);
  return Step::next;
}

// ---- decoding ----

void allow_scopes(Decoder& decoder) {
  decoder.allow({"shared",        "shared::cta", "shared::cluster", "init",      "inval",    "arrive",
                 "arrive_drop",   "expect_tx",   "complete_tx",     "test_wait", "try_wait", "parity",
                 "pending_count", "release",     "acquire",         "relaxed",   "cta",      "cluster",
                 "noComplete",    "mbarrier",    "noinc",           "async"});
}

BarrierForm form_at(Decoder& decoder, const TextOperand& address) {
  BarrierForm form;
  const bool is_shared = decoder.has("shared") || decoder.has("shared::cta") || decoder.has("shared::cluster");
  form.space = is_shared ? Space::shared : Space::generic;
  form.address = decode_address(decoder, address, form.space);
  return form;
}

void decode_init(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_scopes(decoder);
  const bool is_init = decoder.has("init");
  decoder.operands(is_init ? 2 : 1, is_init ? 2 : 1);
  BarrierForm form = form_at(decoder, text.operands[0]);
  if (is_init) form.count = decoder.read(text.operands[1], Type::u32);
  in.extra = decoder.keep(form);
  in.execute = is_init ? run_init : run_inval;
}

void decode_arrive(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_scopes(decoder);
  if (decoder.has("noComplete")) decoder.fail(".noComplete is not emulated");
  const auto& operands = text.operands;
  const bool has_state = operands[0].kind != TextOperand::Kind::address;
  const size_t at = has_state ? 1 : 0;
  decoder.operands(at + 1, at + 3);
  BarrierForm form = form_at(decoder, operands[at]);
  form.drops = decoder.has("arrive_drop");
  form.arrives = form.drops || decoder.has("arrive");
  form.expects = decoder.has("expect_tx") || decoder.has("complete_tx");
  form.counts_itself = decoder.has("complete_tx");  // bytes come instead of being announced
  if (has_state && operands[0].kind != TextOperand::Kind::sink) {
    form.state = decoder.write(operands[0], Type::b64);
    form.writes_state = true;
  }
  if (form.expects) {
    if (operands.size() != at + 2) decoder.fail("a byte count is missing");
    form.bytes = decoder.read(operands[at + 1], Type::u32);
  } else if (operands.size() > at + 1) {
    form.has_count = true;
    form.count = decoder.read(operands[at + 1], Type::u32);
  }
  in.extra = decoder.keep(form);
  in.execute = run_arrive;
}

void decode_wait(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_scopes(decoder);
  decoder.operands(3, 4);
  BarrierForm form = form_at(decoder, text.operands[1]);
  form.may_block = decoder.has("try_wait");
  form.is_parity = decoder.has("parity");
  if (form.is_parity) {
    form.parity = decoder.read(text.operands[2], Type::u32);
  } else {
    form.state = decoder.read(text.operands[2], Type::b64);
  }
  in.d = decoder.write(text.operands[0], Type::pred);
  in.extra = decoder.keep(form);
  in.execute = run_wait;
}

void decode_pending_count(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(2, 2);
  in.d = decoder.write(text.operands[0], Type::u32);
  in.a = decoder.read(text.operands[1], Type::b64);
  in.execute = run_pending_count;
}

void decode_late_arrive(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_scopes(decoder);
  decoder.operands(1, 1);
  BarrierForm form = form_at(decoder, text.operands[0]);
  form.counts_itself = !decoder.has("noinc");
  in.extra = decoder.keep(form);
  in.execute = run_late_arrive;
}

constexpr Entry kEntries[] = {
    {"mbarrier.init", "9.7.13.15.9", decode_init, Class::synchronisation},
    {"mbarrier.inval", "9.7.13.15.10", decode_init, Class::synchronisation},
    {"mbarrier.expect_tx", "9.7.13.15.11", decode_arrive, Class::synchronisation},
    {"mbarrier.complete_tx", "9.7.13.15.12", decode_arrive, Class::synchronisation},
    {"mbarrier.arrive", "9.7.13.15.13", decode_arrive, Class::synchronisation},
    {"mbarrier.arrive_drop", "9.7.13.15.14", decode_arrive, Class::synchronisation},
    {"cp.async.mbarrier.arrive", "9.7.13.15.15", decode_late_arrive, Class::synchronisation},
    {"mbarrier.test_wait", "9.7.13.15.16", decode_wait, Class::synchronisation},
    {"mbarrier.try_wait", "9.7.13.15.16", decode_wait, Class::synchronisation},
    {"mbarrier.pending_count", "9.7.13.15.17", decode_pending_count, Class::synchronisation},
};

}  // namespace

std::span<const Entry> mbarrier_entries() { return kEntries; }

}  // namespace glm5::emulator
