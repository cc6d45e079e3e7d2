// Integer arithmetic, logic and shifts. PTX ISA 9.7.1 and 9.7.8.
#include "decoder.h"
#include "lanes.h"

namespace glm5::emulator {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
constexpr int kBits = static_cast<int>(sizeof(T)) * 8;
template <class T>
struct WiderOf;
template <> struct WiderOf<u16> { using type = u32; };
template <> struct WiderOf<i16> { using type = i32; };
template <> struct WiderOf<u32> { using type = u64; };
template <> struct WiderOf<i32> { using type = i64; };
template <> struct WiderOf<u64> { using type = unsigned __int128; };
template <> struct WiderOf<i64> { using type = __int128; };
template <class T>
using Wider = typename WiderOf<T>::type;

struct Add {
  template <class T>
  T operator()(T a, T b) const { return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b)); }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const { return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b)); }
};
// 16-bit factors are promoted to int, whose overflow is not defined: hence the u32.
template <class T>
using Factor = std::conditional_t<(sizeof(T) < 4), u32, Unsigned<T>>;
struct MultiplyLow {
  template <class T>
  T operator()(T a, T b) const { return static_cast<T>(static_cast<Factor<T>>(a) * static_cast<Factor<T>>(b)); }
};
struct MultiplyHigh {
  template <class T>
  T operator()(T a, T b) const {
    return static_cast<T>((static_cast<Wider<T>>(a) * static_cast<Wider<T>>(b)) >> kBits<T>);
  }
};
struct MultiplyAddLow {
  template <class T>
  T operator()(T a, T b, T c) const { return Add{}(MultiplyLow{}(a, b), c); }
};
struct MultiplyAddHigh {
  template <class T>
  T operator()(T a, T b, T c) const { return Add{}(MultiplyHigh{}(a, b), c); }
};
// Division by zero gives all ones, as the hardware does; the remainder is then the dividend.
struct Divide {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract{}(T{0}, a);
    return static_cast<T>(a / b);
  }
};
struct Remainder {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct Smaller {
  template <class T>
  T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Larger {
  template <class T>
  T operator()(T a, T b) const { return a < b ? b : a; }
};
struct Absolute {
  template <class T>
  T operator()(T a) const { return a < 0 ? Subtract{}(T{0}, a) : a; }
};
struct Negate {
  template <class T>
  T operator()(T a) const { return Subtract{}(T{0}, a); }
};
struct And {
  template <class T>
  T operator()(T a, T b) const { return a & b; }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const { return a | b; }
};
struct Xor {
  template <class T>
  T operator()(T a, T b) const { return a ^ b; }
};
struct Not {
  template <class T>
  T operator()(T a) const { return static_cast<T>(~a); }
};
struct LogicalNot {
  template <class T>
  T operator()(T a) const { return a == 0; }
};
struct SumOfAbsoluteDifferences {
  template <class T>
  T operator()(T a, T b, T c) const { return Add{}(c, a < b ? Subtract{}(b, a) : Subtract{}(a, b)); }
};
struct Reverse {
  template <class T>
  T operator()(T a) const {
    Unsigned<T> result = 0;
    for (int bit = 0; bit < kBits<T>; ++bit)
      result |= static_cast<Unsigned<T>>((static_cast<Unsigned<T>>(a) >> bit) & 1) << (kBits<T> - 1 - bit);
    return static_cast<T>(result);
  }
};

template <int kArity, class F>
void decode_plain(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"lo", "hi"});
  decoder.operands(kArity + 1, kArity + 1);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  if (kArity > 1) in.b = decoder.read(text.operands[2], type);
  if (kArity > 2) in.c = decoder.read(text.operands[3], type);
  in.execute = pick_integer<kArity, F>(type);
}

// Logic also works on predicates, whose lanes are the bits of one word.
template <class F>
Step run_predicate_binary(Warp& warp, const Instruction& in, u32 mask) {
  set_predicate(warp, in.d, mask, F{}(predicate(warp, in.a), predicate(warp, in.b)));
  return Step::next;
}
Step run_predicate_not(Warp& warp, const Instruction& in, u32 mask) {
  set_predicate(warp, in.d, mask, ~predicate(warp, in.a));
  return Step::next;
}

template <class F>
void decode_logic(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (decoder.type_at(-1) != Type::pred) return decode_plain<2, F>(decoder, text, in);
  decoder.operands(3, 3);
  in.d = decoder.write(text.operands[0], Type::pred);
  in.a = decoder.read(text.operands[1], Type::pred);
  in.b = decoder.read(text.operands[2], Type::pred);
  in.execute = run_predicate_binary<F>;
}

void decode_not(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (decoder.type_at(-1) != Type::pred) return decode_plain<1, Not>(decoder, text, in);
  decoder.operands(2, 2);
  in.d = decoder.write(text.operands[0], Type::pred);
  in.a = decoder.read(text.operands[1], Type::pred);
  in.execute = run_predicate_not;
}

template <class T, bool kAdd>
Step run_wide(Warp& warp, const Instruction& in, u32 mask) {
  using W = Wider<T>;
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  W* d = row<W>(warp, in.d);
  if constexpr (kAdd) {
    const W* c = row<W>(warp, in.c);
    compute(d, mask, [=](int i) { return Add{}(static_cast<W>(static_cast<W>(a[i]) * static_cast<W>(b[i])), c[i]); });
  } else {
    // The product of two u16 as int may overflow; through the unsigned type it does not.
    compute(d, mask, [=](int i) { return MultiplyLow{}(static_cast<W>(a[i]), static_cast<W>(b[i])); });
  }
  return Step::next;
}

Type wider_type(Type type) {
  switch (type) {
    case Type::u16: return Type::u32;
    case Type::s16: return Type::s32;
    case Type::u32: return Type::u64;
    case Type::s32: return Type::s64;
    default: return Type::none;
  }
}

template <bool kAdd>
void decode_wide(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  const Type type = decoder.type_at(-1), wide = wider_type(type);
  if (wide == Type::none) return;
  in.d = decoder.write(text.operands[0], wide);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  if (kAdd) in.c = decoder.read(text.operands[3], wide);
  switch (type) {
    case Type::u16: in.execute = run_wide<u16, kAdd>; break;
    case Type::s16: in.execute = run_wide<i16, kAdd>; break;
    case Type::u32: in.execute = run_wide<u32, kAdd>; break;
    default: in.execute = run_wide<i32, kAdd>;
  }
}

void decode_mul(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (decoder.has("wide")) return decode_wide<false>(decoder, text, in);
  if (decoder.has("hi")) return decode_plain<2, MultiplyHigh>(decoder, text, in);
  decode_plain<2, MultiplyLow>(decoder, text, in);
}

void decode_mad(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (decoder.has("wide")) return decode_wide<true>(decoder, text, in);
  if (decoder.has("hi")) return decode_plain<3, MultiplyAddHigh>(decoder, text, in);
  decode_plain<3, MultiplyAddLow>(decoder, text, in);
}

// Shift counts are u32 and clamped to the width.
template <class T, bool kLeft>
Step run_shift(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  const u32* b = row<u32>(warp, in.b);
  compute(row<T>(warp, in.d), mask, [=](int i) -> T {
    if constexpr (kLeft) return b[i] < kBits<T> ? static_cast<T>(static_cast<Factor<T>>(a[i]) << b[i]) : T{0};
    const u32 count = b[i] < kBits<T> ? b[i] : kBits<T> - 1;
    const T shifted = static_cast<T>(a[i] >> count);
    return std::is_signed_v<T> || b[i] < kBits<T> ? shifted : T{0};
  });
  return Step::next;
}

template <bool kLeft>
void decode_shift(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(3, 3);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], Type::u32);
  switch (type) {
    case Type::u16: case Type::b16: in.execute = run_shift<u16, kLeft>; break;
    case Type::s16: in.execute = run_shift<i16, kLeft>; break;
    case Type::u32: case Type::b32: in.execute = run_shift<u32, kLeft>; break;
    case Type::s32: in.execute = run_shift<i32, kLeft>; break;
    case Type::u64: case Type::b64: in.execute = run_shift<u64, kLeft>; break;
    case Type::s64: in.execute = run_shift<i64, kLeft>; break;
    default: break;
  }
}

template <bool kLeft, bool kWrap>
struct Funnel {
  u32 operator()(u32 low, u32 high, u32 count) const {
    const u32 shift = kWrap ? count & 31 : (count < 32 ? count : 32);
    const u64 both = u64{high} << 32 | low;
    return kLeft ? static_cast<u32>((both << shift) >> 32) : static_cast<u32>(both >> shift);
  }
};

void decode_shf(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"l", "r", "wrap", "clamp"});
  decoder.operands(4, 4);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.c = decoder.read(text.operands[3], Type::u32);
  const bool left = decoder.has("l"), wrap = decoder.has("wrap");
  in.execute = left ? (wrap ? run_ternary<u32, Funnel<true, true>> : run_ternary<u32, Funnel<true, false>>)
                    : (wrap ? run_ternary<u32, Funnel<false, true>> : run_ternary<u32, Funnel<false, false>>);
}

Step run_lop3(Warp& warp, const Instruction& in, u32 mask) {
  const u32 *a = row<u32>(warp, in.a), *b = row<u32>(warp, in.b), *c = row<u32>(warp, in.c);
  const u32 table = in.detail;
  compute(row<u32>(warp, in.d), mask, [=](int i) {
    u32 result = 0;
    for (u32 entry = 0; entry < 8; ++entry) {
      const u32 minterm = (entry & 4 ? a[i] : ~a[i]) & (entry & 2 ? b[i] : ~b[i]) & (entry & 1 ? c[i] : ~c[i]);
      result |= (table >> entry & 1) ? minterm : 0;
    }
    return result;
  });
  return Step::next;
}

void decode_lop3(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(5, 5);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.c = decoder.read(text.operands[3], Type::b32);
  in.detail = static_cast<u32>(decoder.immediate(text.operands[4]));
  in.execute = run_lop3;
}

// bfe: a field of `length` bits at `position`; signed fields are extended by their top bit, or by a's beyond it.
template <class T>
Step run_bfe(Warp& warp, const Instruction& in, u32 mask) {
  using U = Unsigned<T>;
  const U* a = row<U>(warp, in.a);
  const u32 *b = row<u32>(warp, in.b), *c = row<u32>(warp, in.c);
  compute(row<U>(warp, in.d), mask, [=](int i) -> U {
    const u32 position = b[i] & 0xff, length = c[i] & 0xff;
    if (length == 0) return 0;
    const u32 top = position + length - 1 < kBits<T> - 1 ? position + length - 1 : kBits<T> - 1;
    const bool sign = std::is_signed_v<T> && (a[i] >> top & 1);
    U field = position < kBits<T> ? static_cast<U>(a[i] >> position) : U{0};
    const u32 present = position < kBits<T> ? (length < kBits<T> - position ? length : kBits<T> - position) : 0;
    const U keep = present >= kBits<T> ? ~U{0} : static_cast<U>((U{1} << present) - 1);
    return static_cast<U>((field & keep) | (sign ? ~keep : U{0}));
  });
  return Step::next;
}

void decode_bfe(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(4, 4);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], Type::u32);
  in.c = decoder.read(text.operands[3], Type::u32);
  in.execute = type == Type::u32 ? run_bfe<u32> : type == Type::s32 ? run_bfe<i32> : type == Type::u64 ? run_bfe<u64>
             : type == Type::s64 ? run_bfe<i64> : nullptr;
}

template <class T>
Step run_bfi(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  const u32 *c = row<u32>(warp, in.c), *length_row = row<u32>(warp, in.list[0]);
  compute(row<T>(warp, in.d), mask, [=](int i) -> T {
    const u32 position = c[i] & 0xff, length = length_row[i] & 0xff;
    if (length == 0 || position >= kBits<T>) return b[i];
    const T ones = length >= kBits<T> ? ~T{0} : static_cast<T>((T{1} << length) - 1);
    const T field = static_cast<T>(ones << position);
    return static_cast<T>((b[i] & ~field) | (static_cast<T>(a[i] << position) & field));
  });
  return Step::next;
}

void decode_bfi(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(5, 5);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  in.c = decoder.read(text.operands[3], Type::u32);
  in.list = decoder.keep_list({decoder.read(text.operands[4], Type::u32)});
  in.execute = bytes_of(type) == 4 ? run_bfi<u32> : run_bfi<u64>;
}

// Counts: the source has the instruction's type, the result is u32.
struct PopulationCount {
  template <class T>
  u32 operator()(T a) const { return static_cast<u32>(__builtin_popcountll(a)); }
};
struct LeadingZeros {
  template <class T>
  u32 operator()(T a) const { return a == 0 ? kBits<T> : static_cast<u32>(__builtin_clzll(u64{a}) - (64 - kBits<T>)); }
};
template <bool kShiftAmount, bool kSigned>
struct FindHighest {
  template <class T>
  u32 operator()(T a) const {
    if (kSigned && (a >> (kBits<T> - 1) & 1)) a = static_cast<T>(~a);
    if (a == 0) return ~u32{0};
    const u32 zeros = LeadingZeros{}(a);
    return kShiftAmount ? zeros : kBits<T> - 1 - zeros;
  }
};

template <class T, class F>
Step run_count(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  compute(row<u32>(warp, in.d), mask, [=](int i) { return F{}(a[i]); });
  return Step::next;
}

template <class F>
void decode_count(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"shiftamt"});
  decoder.operands(2, 2);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], Type::u32);
  in.a = decoder.read(text.operands[1], type);
  in.execute = bytes_of(type) == 4 ? run_count<u32, F> : run_count<u64, F>;
}

void decode_bfind(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  const bool amount = decoder.has("shiftamt");
  if (is_signed(decoder.type_at(-1))) {
    amount ? decode_count<FindHighest<true, true>>(decoder, text, in)
           : decode_count<FindHighest<false, true>>(decoder, text, in);
  } else {
    amount ? decode_count<FindHighest<true, false>>(decoder, text, in)
           : decode_count<FindHighest<false, false>>(decoder, text, in);
  }
}

// Bytes 0-3 are a's, 4-7 b's; bit 3 of a selector spreads the sign of the byte.
struct Permute {
  u32 operator()(u32 a, u32 b, u32 selectors) const {
    const u64 bytes = u64{b} << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; ++i) {
      const u32 selector = selectors >> (4 * i) & 0xf;
      u32 byte = static_cast<u32>(bytes >> (8 * (selector & 7))) & 0xff;
      if (selector & 8) byte = byte & 0x80 ? 0xff : 0;
      result |= byte << (8 * i);
    }
    return result;
  }
};

void decode_prmt(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(4, 4);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.c = decoder.read(text.operands[3], Type::b32);
  in.execute = run_ternary<u32, Permute>;
}

// Ones from bit a on, b of them; .clamp goes to the end of the word, .wrap counts both modulo 32.
template <bool kClamps>
struct BitMask {
  u32 operator()(u32 a, u32 b) const {
    if (!kClamps) a &= 31, b &= 31;
    if (a >= 32) return 0;
    const u32 from = ~u32{0} << a;
    return u64{a} + b >= 32 ? from : from & ~(~u32{0} << (a + b));
  }
};

// The lowest b bits of a, extended to the word.
template <class T, bool kClamps>
struct Extend {
  T operator()(T a, T count) const {
    const u32 b = kClamps ? static_cast<u32>(count) : static_cast<u32>(count) & 31;
    if (b == 0) return 0;
    return b >= 32 ? a : static_cast<T>(static_cast<u32>(a) << (32 - b)) >> (32 - b);
  }
};

// Whether .clamp; one of .clamp and .wrap must be there.
bool clamps(Decoder& decoder) {
  decoder.allow({"clamp", "wrap"});
  decoder.operands(3, 3);
  if (decoder.has("clamp") == decoder.has("wrap")) decoder.fail("one of .clamp and .wrap is missing");
  return decoder.has("clamp");
}

void decode_bmsk(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  in.execute = clamps(decoder) ? run_binary<u32, BitMask<true>> : run_binary<u32, BitMask<false>>;
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
}

void decode_szext(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  const bool is_clamped = clamps(decoder);
  in.execute = is_signed(decoder.type_at(-1))
                   ? (is_clamped ? run_binary<i32, Extend<i32, true>> : run_binary<i32, Extend<i32, false>>)
                   : (is_clamped ? run_binary<u32, Extend<u32, true>> : run_binary<u32, Extend<u32, false>>);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
}

// Four products of bytes, each signed or not, added to c.
template <bool kSignedA, bool kSignedB>
struct DotBytes {
  u32 operator()(u32 a, u32 b, u32 c) const {
    for (int i = 0; i < 32; i += 8) {
      const i32 x = kSignedA ? i32{static_cast<i8>(a >> i)} : i32{static_cast<u8>(a >> i)};
      const i32 y = kSignedB ? i32{static_cast<i8>(b >> i)} : i32{static_cast<u8>(b >> i)};
      c += static_cast<u32>(x * y);
    }
    return c;
  }
};

void decode_dp4a(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(4, 4);
  const bool a = is_signed(decoder.type_at(-2)), b = is_signed(decoder.type_at(-1));
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.b = decoder.read(text.operands[2], Type::b32);
  in.c = decoder.read(text.operands[3], Type::b32);
  in.execute = a ? (b ? run_ternary<u32, DotBytes<true, true>> : run_ternary<u32, DotBytes<true, false>>)
                 : (b ? run_ternary<u32, DotBytes<false, true>> : run_ternary<u32, DotBytes<false, false>>);
}

constexpr Entry kEntries[] = {
    {"add", "9.7.1.1", decode_plain<2, Add>},
    {"sub", "9.7.1.2", decode_plain<2, Subtract>},
    {"mul", "9.7.1.3", decode_mul},
    {"mad", "9.7.1.4", decode_mad},
    {"sad", "9.7.1.7", decode_plain<3, SumOfAbsoluteDifferences>},
    {"div", "9.7.1.8", decode_plain<2, Divide>},
    {"rem", "9.7.1.9", decode_plain<2, Remainder>},
    {"abs", "9.7.1.10", decode_plain<1, Absolute>},
    {"neg", "9.7.1.11", decode_plain<1, Negate>},
    {"min", "9.7.1.12", decode_plain<2, Smaller>},
    {"max", "9.7.1.13", decode_plain<2, Larger>},
    {"popc", "9.7.1.14", decode_count<PopulationCount>},
    {"clz", "9.7.1.15", decode_count<LeadingZeros>},
    {"bfind", "9.7.1.16", decode_bfind},
    {"brev", "9.7.1.18", decode_plain<1, Reverse>},
    {"bfe", "9.7.1.19", decode_bfe},
    {"bfi", "9.7.1.20", decode_bfi},
    {"szext", "9.7.1.21", decode_szext},
    {"bmsk", "9.7.1.22", decode_bmsk},
    {"dp4a", "9.7.1.23", decode_dp4a},
    {"and", "9.7.8.1", decode_logic<And>},
    {"or", "9.7.8.2", decode_logic<Or>},
    {"xor", "9.7.8.3", decode_logic<Xor>},
    {"not", "9.7.8.4", decode_not},
    {"cnot", "9.7.8.5", decode_plain<1, LogicalNot>},
    {"lop3", "9.7.8.6", decode_lop3},
    {"shf", "9.7.8.7", decode_shf},
    {"shl", "9.7.8.8", decode_shift<true>},
    {"shr", "9.7.8.9", decode_shift<false>},
    {"prmt", "9.7.9.7", decode_prmt},
};

}  // namespace

std::span<const Entry> integer_entries() { return kEntries; }

}  // namespace glm5::emulator
