#include "warp_order.h"

#include <algorithm>

namespace glm5::emulator {
namespace {

template <class F>
void each(u32 lanes, F f) {
  for (u32 rest = lanes; rest; rest &= rest - 1) f(static_cast<size_t>(__builtin_ctz(rest)));
}

bool is_own(const OwnCopies& copies, int lane, const Epoch& work) {
  return work.agent == copies.agent && work.clock <= copies.done[static_cast<size_t>(lane)];
}

}  // namespace

WarpOrder::WarpOrder(u32 number, const AgentNumbers& agents) : agent_(static_cast<u16>(number)) {
  copies_out.agent = agents.of(AgentKind::copy_out, number);
  cp_async.agent = agents.of(AgentKind::cp_async, number);
  parties_.push_back({kAllLanes, Clocks(agents.count())});
}

const WarpOrder::Party& WarpOrder::party_of(int lane) const {
  for (const Party& party : parties_)
    if (party.lanes >> lane & 1) return party;
  return parties_.front();
}

const Clocks& WarpOrder::view(int lane) const { return party_of(lane).view; }
u32 WarpOrder::party(int lane) const { return party_of(lane).lanes; }

bool WarpOrder::knows(int lane, const Epoch& work) const {
  const Clocks& view = party_of(lane).view;
  if (work.clock <= view.of(work.agent)) return true;
  if (work.lanes == 0) return false;
  u32 unknown = work.lanes & ~view.lanes_at(work.agent, work.clock);
  if (work.agent == agent_ || is_own(copies_out, lane, work) || is_own(cp_async, lane, work))
    unknown &= ~(u32{1} << lane);
  return unknown == 0;
}

void WarpOrder::note_access(u32 lanes) {
  if (lanes == kAllLanes) return last_.fill(clock_);
  each(lanes, [&](size_t lane) { last_[lane] = clock_; });
}

// Into done_: the agent's clock for every lane that is in `lanes`, up to `by_lane`, or is known to the parties that speak.
// A lane without work since counts as having come to the clock: what it does next will be later. So lanes that do
// nothing of their own never differ.
void WarpOrder::claim(u16 agent, u32 clock, u32 lanes, const LaneClocks& by_lane, const LaneClocks& last) {
  LaneClocks claimed;
  bool is_whole = true;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    const u32 known = done_.of(agent, static_cast<int>(lane));
    const u32 own = lanes >> lane & 1 ? std::max(by_lane[lane], known) : known;
    claimed[lane] = last[lane] <= own ? clock : own;
    is_whole = is_whole && claimed[lane] == clock;
  }
  if (is_whole) {
    done_.raise(agent, clock);
  } else {
    done_.raise(agent, claimed);
  }
}

const Clocks& WarpOrder::done_by(u32 lanes) {
  done_.clear();
  for (const Party& party : parties_)
    if (party.lanes & lanes) done_.join(party.view);
  if (lanes == kAllLanes) {
    done_.raise(agent_, clock_);
  } else {
    LaneClocks now;
    now.fill(clock_);
    claim(agent_, clock_, lanes, now, last_);
  }
  for (const OwnCopies* copies : {&copies_out, &cp_async})
    if (copies->clock) claim(copies->agent, copies->clock, lanes, copies->done, copies->last);
  ++clock_;
  return done_;
}

void WarpOrder::learn(u32 lanes, const Clocks& news) {
  for (size_t i = 0, count = parties_.size(); i < count; ++i) {
    const u32 learning = parties_[i].lanes & lanes;
    if (learning == 0 || parties_[i].view.covers(news)) continue;
    if (learning != parties_[i].lanes) {
      parties_[i].lanes &= ~learning;
      Party apart{learning, parties_[i].view};
      apart.view.join(news);
      parties_.push_back(std::move(apart));
    } else {
      parties_[i].view.join(news);
    }
  }
}

void WarpOrder::meet(u32 lanes) {
  Party together{lanes, done_by(lanes)};
  for (Party& party : parties_) party.lanes &= ~lanes;
  std::erase_if(parties_, [](const Party& party) { return party.lanes == 0; });
  parties_.push_back(std::move(together));
}

void WarpOrder::start(OwnCopies& copies, u32 lanes) {
  ++copies.clock;
  each(lanes, [&](size_t lane) { copies.last[lane] = copies.clock; });
}

void WarpOrder::wait(OwnCopies& copies, int lane, u32 clock) {
  u32& done = copies.done[static_cast<size_t>(lane)];
  done = std::max(done, clock);
}

}  // namespace glm5::emulator
