// Integer arithmetic that passes a carry on to the next instruction. PTX ISA 9.7.2.
//
// The condition code is one bit per lane: the carry of an addition, the borrow of a subtraction. No instruction keeps
// it but these, and a call loses it: a lane that reads what no .cc instruction of its function has written is at fault.
#include "decoder.h"
#include "lanes.h"
#include "report.h"
#include "specials.h"

namespace glm5::emulator {
namespace {

enum Detail : u32 { kReads = 1, kWrites = 2 };

// Value and carry of a + b + c, or of a - b - c with a borrow.
template <class T>
struct Carried {
  T value;
  bool carry;
};
template <class T, bool kSubtracts>
Carried<T> add_carry(T a, T b, bool c) {
  T value;
  bool carry;
  if constexpr (kSubtracts) {
    const bool first = __builtin_sub_overflow(a, b, &value);
    carry = __builtin_sub_overflow(value, T{c}, &value) || first;
  } else {
    const bool first = __builtin_add_overflow(a, b, &value);
    carry = __builtin_add_overflow(value, T{c}, &value) || first;
  }
  return {value, carry};
}

u32 carry_in(Warp& warp, const Instruction& in, u32 mask) {
  if (!(in.detail & kReads)) return 0;
  if (const u32 unset = mask & ~predicate(warp, special_row(Special::carry_is_set)))
    fault(warp, first_lane(unset), "uninitialised", "reads a carry that no .cc instruction of this function has set");
  return predicate(warp, special_row(Special::carry));
}

template <class T, bool kSubtracts, class Sources>
void run(Warp& warp, const Instruction& in, u32 mask, Sources sources) {
  const u32 carry = carry_in(warp, in, mask);
  T* d = row<T>(warp, in.d);
  u32 carries = 0;
  each_lane(mask, [&](int i) {
    const auto [a, b] = sources(i);
    const Carried<T> sum = add_carry<T, kSubtracts>(a, b, carry >> i & 1);
    d[i] = sum.value;
    carries |= u32{sum.carry} << i;
  });
  if (!(in.detail & kWrites)) return;
  set_predicate(warp, special_row(Special::carry), mask, carries);
  set_predicate(warp, special_row(Special::carry_is_set), mask, kAllLanes);
}

template <class T>
struct Pair {
  T a, b;
};

template <class T, bool kSubtracts>
Step run_add(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  run<T, kSubtracts>(warp, in, mask, [=](int i) { return Pair<T>{a[i], b[i]}; });
  return Step::next;
}

// T: as the factors count, signed or not. Only the sum sets the carry, not the product.
template <class T, bool kHigh>
Step run_mad(Warp& warp, const Instruction& in, u32 mask) {
  using Sum = std::make_unsigned_t<T>;
  using Wide = std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, i64, u64>,
                                  std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>;
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  const Sum* c = row<Sum>(warp, in.c);
  run<Sum, false>(warp, in, mask, [=](int i) {
    const Wide product = Wide{a[i]} * Wide{b[i]};
    return Pair<Sum>{static_cast<Sum>(kHigh ? product >> (8 * sizeof(T)) : product), c[i]};
  });
  return Step::next;
}

template <bool kSubtracts>
void decode_add(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"cc"});
  decoder.operands(3, 3);
  const Type type = decoder.type_at(-1);
  in.detail = (text.words[0].ends_with("c") ? u32{kReads} : 0) | (decoder.has("cc") ? u32{kWrites} : 0);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  if (bytes_of(type) == 4) in.execute = run_add<u32, kSubtracts>;
  if (bytes_of(type) == 8) in.execute = run_add<u64, kSubtracts>;
}

template <class T>
Executor pick_mad(bool is_high) {
  return is_high ? run_mad<T, true> : run_mad<T, false>;
}

void decode_mad(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"lo", "hi", "cc"});
  decoder.operands(4, 4);
  if (decoder.has("lo") == decoder.has("hi")) decoder.fail("one of .lo and .hi is missing");
  const Type type = decoder.type_at(-1);
  in.detail = (text.words[0] == "madc" ? u32{kReads} : 0) | (decoder.has("cc") ? u32{kWrites} : 0);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  in.c = decoder.read(text.operands[3], type);
  const bool is_high = decoder.has("hi");
  switch (type) {
    case Type::u32:
      in.execute = pick_mad<u32>(is_high);
      break;
    case Type::s32:
      in.execute = pick_mad<i32>(is_high);
      break;
    case Type::u64:
      in.execute = pick_mad<u64>(is_high);
      break;
    case Type::s64:
      in.execute = pick_mad<i64>(is_high);
      break;
    default:
      break;
  }
}

constexpr Entry kEntries[] = {
    {"add.cc", "9.7.2.1", decode_add<false>}, {"addc", "9.7.2.2", decode_add<false>},
    {"sub.cc", "9.7.2.3", decode_add<true>},  {"subc", "9.7.2.4", decode_add<true>},
    {"mad.lo.cc", "9.7.2.5", decode_mad},     {"mad.hi.cc", "9.7.2.5", decode_mad},
    {"madc", "9.7.2.6", decode_mad},
};

}  // namespace

std::span<const Entry> carry_entries() { return kEntries; }

}  // namespace glm5::emulator
