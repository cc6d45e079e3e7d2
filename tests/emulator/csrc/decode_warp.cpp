// Operations among the lanes of a warp: shfl, vote, match, redux, elect, activemask. PTX ISA 9.7.9 and 9.7.13;
// setmaxnreg 9.7.19.
#include <algorithm>

#include "agents.h"
#include "decoder.h"
#include "lanes.h"
#include "report.h"

namespace glm5::emulator {
namespace {

// The start of every .sync instruction: the member mask is the same row for all; executing lanes must be in it.
bool wait_for_members(Warp& warp, Operand members_row, u32 mask, u32& members) {
  const u32* row_of_members = row<u32>(warp, members_row);
  members = row_of_members[first_lane(mask)];
  if (const u32 outside = mask & ~members)
    fault(warp, first_lane(outside), "divergence",
          "a lane executes a .sync instruction without being in its member mask ", Hex{members});
  members &= warp.live;
  if (must_converge(warp, members)) return true;
  if (const u32 absent = members & ~mask)
    fault(warp, first_lane(absent), "divergence", "lanes ", Hex{absent},
          " are members of a .sync instruction and their guard is false");
  return false;
}

enum class Shuffle : u32 { idx, up, down, bfly };

Step run_shfl(Warp& warp, const Instruction& in, u32 mask) {
  u32 members;
  if (wait_for_members(warp, in.list[0], mask, members)) return Step::blocked;
  const u32 *a = row<u32>(warp, in.a), *b = row<u32>(warp, in.b), *c = row<u32>(warp, in.c);
  u32 result[kLanes], valid = 0;
  each_lane(mask, [&](int lane) {
    const u32 self = static_cast<u32>(lane), clamp = c[lane] & 31, segment = c[lane] >> 8 & 31, shift = b[lane] & 31;
    const u32 last = (self & segment) | (clamp & ~segment), first = self & segment;
    u32 from = self;
    bool in_range = false;
    switch (static_cast<Shuffle>(in.detail)) {
      case Shuffle::up:
        from = self - shift;
        in_range = static_cast<i32>(from) >= static_cast<i32>(last);
        break;
      case Shuffle::down:
        from = self + shift;
        in_range = from <= last;
        break;
      case Shuffle::bfly:
        from = self ^ shift;
        in_range = from <= last;
        break;
      case Shuffle::idx:
        from = first | (shift & ~segment);
        in_range = from <= last;
    }
    if (!in_range) from = self;
    if (!(members >> from & 1))
      fault(warp, lane, "divergence", "shfl reads lane ", from, ", which is no member (", Hex{members}, ")");
    result[lane] = a[from];
    valid |= static_cast<u32>(in_range) << lane;
  });
  u32* d = row<u32>(warp, in.d);
  each_lane(mask, [&](int lane) { d[lane] = result[lane]; });
  if (in.count > 1) set_predicate(warp, in.list[1], mask, valid);
  return Step::next;
}

void decode_shfl(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "idx", "up", "down", "bfly"});
  decoder.operands(5, 5);
  in.detail = static_cast<u32>(decoder.has("up") ? Shuffle::up : decoder.has("down") ? Shuffle::down
                               : decoder.has("bfly") ? Shuffle::bfly : Shuffle::idx);
  const bool is_pair = text.operands[0].kind == TextOperand::Kind::pair;
  in.d = decoder.write(is_pair ? text.operands[0].parts[0] : text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.c = decoder.read(text.operands[3], Type::b32);
  std::vector<Operand> rows{decoder.read(text.operands[4], Type::b32)};
  if (is_pair) rows.push_back(decoder.write(text.operands[0].parts[1], Type::pred));
  in.count = static_cast<u32>(rows.size());
  in.list = decoder.keep_list(rows);
  in.execute = run_shfl;
}

enum class Vote : u32 { all, any, uni, ballot };

Step run_vote(Warp& warp, const Instruction& in, u32 mask) {
  u32 members;
  if (wait_for_members(warp, in.b, mask, members)) return Step::blocked;
  const u32 votes = (predicate(warp, in.a) ^ static_cast<u32>(in.offset)) & members;
  switch (static_cast<Vote>(in.detail)) {
    case Vote::all: set_predicate(warp, in.d, mask, votes == members ? kAllLanes : 0); break;
    case Vote::any: set_predicate(warp, in.d, mask, votes ? kAllLanes : 0); break;
    case Vote::uni: set_predicate(warp, in.d, mask, votes == members || votes == 0 ? kAllLanes : 0); break;
    case Vote::ballot: compute(row<u32>(warp, in.d), mask, [=](int) { return votes; });
  }
  return Step::next;
}

void decode_vote(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "all", "any", "uni", "ballot"});
  decoder.operands(3, 3);
  in.detail = static_cast<u32>(decoder.has("all") ? Vote::all : decoder.has("any") ? Vote::any
                               : decoder.has("uni") ? Vote::uni : Vote::ballot);
  in.d = decoder.write(text.operands[0], decoder.has("ballot") ? Type::b32 : Type::pred);
  in.a = decoder.read(text.operands[1], Type::pred);
  in.offset = text.operands[1].negated ? -1 : 0;
  in.b = decoder.read(text.operands[2], Type::b32);
  in.execute = run_vote;
}

template <class T, bool kAll>
Step run_match(Warp& warp, const Instruction& in, u32 mask) {
  u32 members;
  if (wait_for_members(warp, in.b, mask, members)) return Step::blocked;
  const T* a = row<T>(warp, in.a);
  u32 same[kLanes];
  each_lane(mask, [&](int lane) { same[lane] = where(members, [&](int other) { return a[other] == a[lane]; }); });
  u32* d = row<u32>(warp, in.d);
  u32 agreed = 0;
  each_lane(mask, [&](int lane) {
    agreed |= static_cast<u32>(same[lane] == members) << lane;
    d[lane] = kAll ? (same[lane] == members ? members : 0) : same[lane];
  });
  if (in.count) set_predicate(warp, in.list[0], mask, agreed);
  return Step::next;
}

void decode_match(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "all", "any"});
  decoder.operands(3, 3);
  const Type type = decoder.type_at(-1);
  const bool is_pair = text.operands[0].kind == TextOperand::Kind::pair, all = decoder.has("all");
  in.d = decoder.write(is_pair ? text.operands[0].parts[0] : text.operands[0], Type::b32);
  if (is_pair) {
    in.list = decoder.keep_list({decoder.write(text.operands[0].parts[1], Type::pred)});
    in.count = 1;
  }
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.execute = bytes_of(type) == 4 ? (all ? run_match<u32, true> : run_match<u32, false>)
                                   : (all ? run_match<u64, true> : run_match<u64, false>);
}

enum class Redux : u32 { add, min, max, with_and, with_or, with_xor };

template <class T>
Step run_redux(Warp& warp, const Instruction& in, u32 mask) {
  u32 members;
  if (wait_for_members(warp, in.b, mask, members)) return Step::blocked;
  const T* a = row<T>(warp, in.a);
  T sum = a[first_lane(members)];
  each_lane(members & (members - 1), [&](int lane) {
    const T value = a[lane];
    switch (static_cast<Redux>(in.detail)) {
      case Redux::add: sum = static_cast<T>(static_cast<u32>(sum) + static_cast<u32>(value)); break;
      case Redux::min: sum = std::min(sum, value); break;
      case Redux::max: sum = std::max(sum, value); break;
      case Redux::with_and: sum &= value; break;
      case Redux::with_or: sum |= value; break;
      case Redux::with_xor: sum ^= value;
    }
  });
  compute(row<T>(warp, in.d), mask, [=](int) { return sum; });
  return Step::next;
}

void decode_redux(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "add", "min", "max", "and", "or", "xor"});
  decoder.operands(3, 3);
  in.detail = static_cast<u32>(decoder.has("add") ? Redux::add : decoder.has("min") ? Redux::min
                               : decoder.has("max") ? Redux::max : decoder.has("and") ? Redux::with_and
                               : decoder.has("or") ? Redux::with_or : Redux::with_xor);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.execute = decoder.type_at(-1) == Type::s32 ? run_redux<i32> : run_redux<u32>;
}

Step run_elect(Warp& warp, const Instruction& in, u32 mask) {
  u32 members;
  if (wait_for_members(warp, in.b, mask, members)) return Step::blocked;
  const u32 leader = static_cast<u32>(first_lane(members));
  if (in.count) compute(row<u32>(warp, in.list[0]), mask, [=](int) { return leader; });
  set_predicate(warp, in.d, mask, u32{1} << leader);
  return Step::next;
}

void decode_elect(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync"});
  decoder.operands(2, 2);
  const bool is_pair = text.operands[0].kind == TextOperand::Kind::pair;
  in.d = decoder.write(is_pair ? text.operands[0].parts[1] : text.operands[0], Type::pred);
  if (is_pair) {
    in.list = decoder.keep_list({decoder.write(text.operands[0].parts[0], Type::b32)});
    in.count = 1;
  }
  in.b = decoder.read(text.operands[1], Type::b32);
  in.execute = run_elect;
}

Step run_activemask(Warp& warp, const Instruction& in, u32 mask) {
  compute(row<u32>(warp, in.d), mask, [=](int) { return mask; });
  return Step::next;
}

void decode_activemask(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(1, 1);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.execute = run_activemask;
}

Step run_setmaxnreg(Warp& warp, const Instruction&, u32 mask) {
  return must_converge_aligned(warp, mask) ? Step::blocked : Step::next;
}

void decode_setmaxnreg(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"inc", "dec", "sync", "aligned"});
  decoder.operands(1, 1);
  const i64 count = decoder.immediate(text.operands[0]);
  if (count < 24 || count > 256 || count % 8 != 0)
    decoder.fail("setmaxnreg takes a multiple of 8 from 24 to 256, got ", count);
  in.execute = run_setmaxnreg;
}

constexpr Entry kEntries[] = {
    {"shfl", "9.7.9.6", decode_shfl, Class::move},
    {"vote", "9.7.13.9", decode_vote, Class::synchronisation},
    {"match", "9.7.13.10", decode_match, Class::synchronisation},
    {"activemask", "9.7.13.11", decode_activemask, Class::move},
    {"redux", "9.7.13.12", decode_redux, Class::synchronisation},
    {"elect", "9.7.13.14", decode_elect, Class::synchronisation},
    {"setmaxnreg", "9.7.19.5", decode_setmaxnreg, Class::control},
};

}  // namespace

std::span<const Entry> warp_entries() { return kEntries; }

}  // namespace glm5::emulator
