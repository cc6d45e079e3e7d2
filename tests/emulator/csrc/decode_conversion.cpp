// cvt, cvta, isspacep, and comparisons that yield predicates. PTX ISA 9.7.6, 9.7.7 and 9.7.9.
#include <algorithm>

#include "decoder.h"
#include "lanes.h"
#include "memory.h"
#include "numbers.h"

namespace glm5::emulator {
namespace {

// ---- setp, set, selp, slct

enum class Compare : u32 { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };
constexpr std::string_view kCompareNames[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge",  "equ",
                                              "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
enum class Combine : u32 { none, with_and, with_or, with_xor };

template <Compare kCompare, class T>
[[gnu::always_inline]] inline bool holds(T a, T b) {
  if constexpr (kCompare == Compare::eq) return a == b;
  if constexpr (kCompare == Compare::ne) return a < b || a > b;
  if constexpr (kCompare == Compare::lt) return a < b;
  if constexpr (kCompare == Compare::le) return a <= b;
  if constexpr (kCompare == Compare::gt) return a > b;
  if constexpr (kCompare == Compare::ge) return a >= b;
  if constexpr (kCompare == Compare::equ) return !(a < b || a > b);
  if constexpr (kCompare == Compare::neu) return !(a == b);
  if constexpr (kCompare == Compare::ltu) return !(a >= b);
  if constexpr (kCompare == Compare::leu) return !(a > b);
  if constexpr (kCompare == Compare::gtu) return !(a <= b);
  if constexpr (kCompare == Compare::geu) return !(a < b);
  if constexpr (kCompare == Compare::num) return a == a && b == b;
  return a != a || b != b;
}

u32 combine(u32 value, Combine how, u32 with) {
  switch (how) {
    case Combine::with_and: return value & with;
    case Combine::with_or: return value | with;
    case Combine::with_xor: return value ^ with;
    case Combine::none: break;
  }
  return value;
}

struct CompareExtra {
  Operand with;
  u32 with_flip = 0;
  Combine how = Combine::none;
  bool has_second = false;
  Operand second;
};

void finish(Warp& warp, const Instruction& in, u32 mask, u32 value) {
  const auto* extra = static_cast<const CompareExtra*>(in.extra);
  if (extra == nullptr) return set_predicate(warp, in.d, mask, value);
  const u32 with = predicate(warp, extra->with) ^ extra->with_flip;
  if (extra->has_second) set_predicate(warp, extra->second, mask, combine(~value, extra->how, with));
  set_predicate(warp, in.d, mask, combine(value, extra->how, with));
}

template <class T, Compare kCompare>
Step run_setp(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  finish(warp, in, mask, where(mask, [=](int i) { return holds<kCompare>(a[i], b[i]); }));
  return Step::next;
}

// f16 and bf16, one or two in a register; with two, the second goes to the second predicate.
template <bool kBrain, int kCount, Compare kCompare>
Step run_setp_half(Warp& warp, const Instruction& in, u32 mask) {
  const u16 *a = row<u16>(warp, in.a), *b = row<u16>(warp, in.b);
  const auto load = [](u16 bits) { return kBrain ? from_bf16(bits) : from_f16(bits); };
  const auto half = [&](int which) {
    return where(mask,
                 [&](int i) { return holds<kCompare>(load(a[i * kCount + which]), load(b[i * kCount + which])); });
  };
  if constexpr (kCount == 1) {
    finish(warp, in, mask, half(0));
  } else {
    const auto* extra = static_cast<const CompareExtra*>(in.extra);
    const u32 low = half(0), high = half(1);
    if (extra && extra->has_second) set_predicate(warp, extra->second, mask, high);
    set_predicate(warp, in.d, mask, low);
  }
  return Step::next;
}

template <Compare kCompare>
Executor pick_setp(Type type) {
  if constexpr (kCompare <= Compare::ge) {
    if (const Executor integer = [&]() -> Executor {
          switch (type) {
            case Type::u16: case Type::b16: return run_setp<u16, kCompare>;
            case Type::s16: return run_setp<i16, kCompare>;
            case Type::u32: case Type::b32: return run_setp<u32, kCompare>;
            case Type::s32: return run_setp<i32, kCompare>;
            case Type::u64: case Type::b64: return run_setp<u64, kCompare>;
            case Type::s64: return run_setp<i64, kCompare>;
            default: return nullptr;
          }
        }())
      return integer;
  }
  switch (type) {
    case Type::f32: return run_setp<float, kCompare>;
    case Type::f64: return run_setp<double, kCompare>;
    case Type::f16: return run_setp_half<false, 1, kCompare>;
    case Type::f16x2: return run_setp_half<false, 2, kCompare>;
    case Type::bf16: return run_setp_half<true, 1, kCompare>;
    case Type::bf16x2: return run_setp_half<true, 2, kCompare>;
    default: return nullptr;
  }
}

template <size_t... kIndex>
Executor pick_setp(Compare compare, Type type, std::index_sequence<kIndex...>) {
  Executor found = nullptr;
  ((static_cast<size_t>(compare) == kIndex ? void(found = pick_setp<static_cast<Compare>(kIndex)>(type)) : void()),
   ...);
  return found;
}

// lo, ls, hi, hs are the unsigned names of lt, le, gt, ge.
Compare compare_of(Decoder& decoder, std::string_view word) {
  if (word == "lo") return Compare::lt;
  if (word == "ls") return Compare::le;
  if (word == "hi") return Compare::gt;
  if (word == "hs") return Compare::ge;
  const auto* found = std::find(std::begin(kCompareNames), std::end(kCompareNames), word);
  if (found == std::end(kCompareNames)) decoder.fail("unknown comparison .", word);
  return static_cast<Compare>(found - std::begin(kCompareNames));
}

void decode_setp(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(3, 4);
  const Type type = decoder.type_at(-1);
  const Compare compare = compare_of(decoder, text.words[1]);
  CompareExtra extra;
  if (decoder.has("and")) extra.how = Combine::with_and;
  if (decoder.has("or")) extra.how = Combine::with_or;
  if (decoder.has("xor")) extra.how = Combine::with_xor;
  const bool is_pair = text.operands[0].kind == TextOperand::Kind::pair;
  in.d = decoder.write(is_pair ? text.operands[0].parts[0] : text.operands[0], Type::pred);
  if (is_pair) {
    extra.has_second = true;
    extra.second = decoder.write(text.operands[0].parts[1], Type::pred);
  }
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  extra.with = decoder.constant(1, 0);
  if (text.operands.size() == 4) {
    extra.with = decoder.read(text.operands[3], Type::pred);
    extra.with_flip = text.operands[3].negated ? kAllLanes : 0;
  }
  if (is_pair || extra.how != Combine::none) in.extra = decoder.keep(extra);
  in.execute = pick_setp(compare, type, std::make_index_sequence<14>{});
}

// set: all ones (or 1.0) where the comparison holds, through a scratch predicate of its own.
struct SetExtra {
  Instruction compare;
  bool to_float = false;
};
Step run_set(Warp& warp, const Instruction& in, u32 mask) {
  const auto* extra = static_cast<const SetExtra*>(in.extra);
  extra->compare.execute(warp, extra->compare, mask);
  const u32 value = predicate(warp, extra->compare.d);
  const u32 one = extra->to_float ? 0x3f800000 : ~u32{0};
  compute(row<u32>(warp, in.d), mask, [=](int i) { return value >> i & 1 ? one : 0; });
  return Step::next;
}

void decode_set(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(3, 3);
  const Type source = decoder.type_at(-1), result = decoder.type_at(-2);
  if (bytes_of(result) != 4) return;
  SetExtra extra;
  extra.to_float = result == Type::f32;
  const u32 scratch = decoder.linker().allocate_registers(4);
  extra.compare.d.offset = scratch & 0x3fffffff;
  extra.compare.a = decoder.read(text.operands[1], source);
  extra.compare.b = decoder.read(text.operands[2], source);
  extra.compare.execute = pick_setp(compare_of(decoder, text.words[1]), source, std::make_index_sequence<14>{});
  if (extra.compare.execute == nullptr) return;
  in.d = decoder.write(text.operands[0], result);
  in.extra = decoder.keep(extra);
  in.execute = run_set;
}

template <class T>
Step run_selp(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  const u32 choice = predicate(warp, in.c) ^ in.detail;
  compute(row<T>(warp, in.d), mask, [=](int i) { return choice >> i & 1 ? a[i] : b[i]; });
  return Step::next;
}

void decode_selp(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(4, 4);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  in.c = decoder.read(text.operands[3], Type::pred);
  in.detail = text.operands[3].negated ? kAllLanes : 0;
  in.execute = bytes_of(type) == 2 ? run_selp<u16> : bytes_of(type) == 4 ? run_selp<u32> : run_selp<u64>;
}

template <class T, class C>
Step run_slct(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b);
  const C* c = row<C>(warp, in.c);
  compute(row<T>(warp, in.d), mask, [=](int i) { return c[i] >= C{0} ? a[i] : b[i]; });
  return Step::next;
}

void decode_slct(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(4, 4);
  const Type type = decoder.type_at(-2), choice = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  in.a = decoder.read(text.operands[1], type);
  in.b = decoder.read(text.operands[2], type);
  in.c = decoder.read(text.operands[3], choice);
  if (choice == Type::f32) in.execute = bytes_of(type) == 4 ? run_slct<u32, float> : run_slct<u64, float>;
  else in.execute = bytes_of(type) == 4 ? run_slct<u32, i32> : run_slct<u64, i32>;
}

// ---- cvt: source row -> exact values -> rounded -> destination row

struct CvtExtra {
  Type to, from;
  int to_width, from_width;  // bytes per lane of the rows
  Rounding rounding = Rounding::nearest;
  bool to_integer_first = false;  // .rni and its kin on floats
  bool saturate = false, flush = false, relu = false;
};

u64 load_bits(const u8* row, int lane, int width) {
  u64 bits = 0;
  std::copy_n(row + lane * width, width, reinterpret_cast<u8*>(&bits));
  return bits;
}

i64 integer_of(u64 bits, Type type) {
  switch (type) {
    case Type::s8: return static_cast<i8>(bits);
    case Type::s16: return static_cast<i16>(bits);
    case Type::s32: return static_cast<i32>(bits);
    case Type::u8: return static_cast<u8>(bits);
    case Type::u16: return static_cast<u16>(bits);
    case Type::u32: return static_cast<u32>(bits);
    default: return static_cast<i64>(bits);
  }
}

double float_value(u64 bits, Type type, bool flush) {
  switch (type) {
    case Type::f32: {
      const float value = float_of(static_cast<u32>(bits));
      return flush && std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
    }
    case Type::f64: return std::bit_cast<double>(bits);
    case Type::f16: return from_f16(static_cast<u16>(bits));
    case Type::bf16: return from_bf16(static_cast<u16>(bits));
    default: return 0;
  }
}

u64 to_integer(double value, Type type, Rounding rounding) {
  if (value != value) return 0;
  value = round_integer(value, rounding);
  const int bits = bytes_of(type) * 8;
  if (is_signed(type)) {
    const double limit = std::ldexp(1.0, bits - 1);
    if (value >= limit) return (u64{1} << (bits - 1)) - 1;
    if (value < -limit) return u64{1} << (bits - 1);
    return static_cast<u64>(static_cast<i64>(value));
  }
  if (value <= 0) return 0;
  if (value >= std::ldexp(1.0, bits)) return bits == 64 ? ~u64{0} : (u64{1} << bits) - 1;
  return static_cast<u64>(value);
}

u64 saturate_integer(i64 value, Type from, Type to) {
  const int bits = bytes_of(to) * 8;
  const bool is_huge = from == Type::u64 && value < 0;  // beyond i64
  const i64 high = is_signed(to) ? static_cast<i64>((u64{1} << (bits - 1)) - 1)
                   : bits == 64 ? std::numeric_limits<i64>::max() : static_cast<i64>((u64{1} << bits) - 1);
  const i64 low = is_signed(to) ? -high - 1 : 0;
  if (is_huge) return to == Type::u64 ? static_cast<u64>(value) : static_cast<u64>(high);
  return static_cast<u64>(std::clamp(value, low, high));
}

u64 encode_float(double value, const CvtExtra& extra) {
  if (extra.relu && value < 0) value = 0;
  if (extra.to_integer_first) value = std::copysign(round_integer(value, extra.rounding), value);
  const Rounding rounding = extra.to_integer_first ? Rounding::nearest : extra.rounding;
  switch (extra.to) {
    case Type::f64: return std::bit_cast<u64>(value);
    case Type::f32: {
      if (value != value) return extra.saturate ? 0 : 0x7fffffff;
      float result = static_cast<float>(round_to(value, kF32, rounding, false));
      if (extra.flush && std::fabs(result) < 0x1p-126f) result = std::copysign(0.0f, result);
      if (extra.saturate) result = result > 0 ? std::min(result, 1.0f) : 0.0f;
      return bits_of(result);
    }
    case Type::f16: return encode(round_to(value, kF16, rounding, extra.saturate), kF16, 5);
    case Type::bf16: return encode(round_to(value, kBf16, rounding, extra.saturate), kBf16, 8);
    case Type::tf32: return bits_of(static_cast<float>(round_to(value, kTf32, rounding, extra.saturate)));
    default: return 0;
  }
}

void store_bits(u8* row, int lane, int width, u64 bits, Type type) {
  // A narrower result is extended into a wider register by its sign.
  if (is_signed(type)) bits = static_cast<u64>(integer_of(bits, type));
  else if (bytes_of(type) < 8) bits &= (u64{1} << (8 * bytes_of(type))) - 1;
  std::copy_n(reinterpret_cast<const u8*>(&bits), width, row + lane * width);
}

Step run_cvt(Warp& warp, const Instruction& in, u32 mask) {
  const auto& extra = *static_cast<const CvtExtra*>(in.extra);
  const u8* a = row<u8>(warp, in.a);
  u8* d = row<u8>(warp, in.d);
  each_lane(mask, [&](int lane) {
    const u64 bits = load_bits(a, lane, extra.from_width);
    u64 result;
    if (!is_float(extra.from)) {
      const i64 value = integer_of(bits, extra.from);
      if (!is_float(extra.to)) {
        result = extra.saturate ? saturate_integer(value, extra.from, extra.to) : static_cast<u64>(value);
      } else if (extra.from == Type::u64 && value < 0) {
        // The lowest bits cannot tip a rounding except through being nonzero: fold them into one.
        const double folded = static_cast<double>(static_cast<i64>((bits >> 11) | ((bits & 0x7ff) != 0)));
        result =
            extra.to == Type::f64 ? std::bit_cast<u64>(static_cast<double>(bits)) : encode_float(folded * 2048, extra);
      } else if (extra.to == Type::f64) {
        result = std::bit_cast<u64>(static_cast<double>(value));
      } else {
        const u64 magnitude = static_cast<u64>(value < 0 ? -value : value);
        const bool is_long = magnitude >> 53;
        const double exact = is_long ? static_cast<double>((magnitude >> 11) | ((magnitude & 0x7ff) != 0)) * 2048
                                     : static_cast<double>(magnitude);
        result = encode_float(value < 0 ? -exact : exact, extra);
      }
    } else {
      const double value = float_value(bits, extra.from, extra.flush);
      result = is_float(extra.to) ? encode_float(value, extra) : to_integer(value, extra.to, extra.rounding);
    }
    store_bits(d, lane, extra.to_width, result, extra.to);
  });
  return Step::next;
}

// The conversions that kernels make all the time.
template <class D, class S>
Step run_cast(Warp& warp, const Instruction& in, u32 mask) {
  const S* a = row<S>(warp, in.a);
  compute(row<D>(warp, in.d), mask, [=](int i) { return static_cast<D>(a[i]); });
  return Step::next;
}
Step run_f32_from_bf16(Warp& warp, const Instruction& in, u32 mask) {
  const u16* a = row<u16>(warp, in.a);
  compute(row<u32>(warp, in.d), mask, [=](int i) { return u32{a[i]} << 16; });
  return Step::next;
}
Step run_f32_from_f16(Warp& warp, const Instruction& in, u32 mask) {
  const u16* a = row<u16>(warp, in.a);
  compute(row<float>(warp, in.d), mask, [=](int i) { return from_f16(a[i]); });
  return Step::next;
}
Step run_bf16_from_f32(Warp& warp, const Instruction& in, u32 mask) {
  const float* a = row<float>(warp, in.a);
  compute(row<u16>(warp, in.d), mask, [=](int i) { return to_bf16(a[i]); });
  return Step::next;
}

Executor pick_cast(const CvtExtra& extra) {
  const auto is = [&](Type to, Type from, int to_width, int from_width) {
    return extra.to == to && extra.from == from && extra.to_width == to_width && extra.from_width == from_width;
  };
  if (extra.saturate || extra.flush || extra.relu || extra.to_integer_first) return nullptr;
  if (is(Type::s64, Type::s32, 8, 4)) return run_cast<i64, i32>;
  if (is(Type::u64, Type::u32, 8, 4) || is(Type::s64, Type::u32, 8, 4)) return run_cast<u64, u32>;
  if (is(Type::u32, Type::u64, 4, 8) || is(Type::s32, Type::s64, 4, 8)) return run_cast<u32, u64>;
  if (is(Type::u16, Type::u32, 2, 4)) return run_cast<u16, u32>;
  if (is(Type::u32, Type::u16, 4, 2)) return run_cast<u32, u16>;
  if (is(Type::s32, Type::s16, 4, 2)) return run_cast<i32, i16>;
  if (is(Type::f32, Type::bf16, 4, 2)) return run_f32_from_bf16;
  if (is(Type::f32, Type::f16, 4, 2)) return run_f32_from_f16;
  if (extra.rounding != Rounding::nearest) return nullptr;
  if (is(Type::f32, Type::s32, 4, 4)) return run_cast<float, i32>;
  if (is(Type::f32, Type::u32, 4, 4)) return run_cast<float, u32>;
  if (is(Type::bf16, Type::f32, 2, 4)) return run_bf16_from_f32;
  return nullptr;
}

// Two sources into one register of two: the first operand is the high half.
Step run_cvt_pair(Warp& warp, const Instruction& in, u32 mask) {
  const auto& extra = *static_cast<const CvtExtra*>(in.extra);
  const u8 *high = row<u8>(warp, in.a), *low = row<u8>(warp, in.b);
  u8* d = row<u8>(warp, in.d);
  each_lane(mask, [&](int lane) {
    u64 packed = 0;
    for (int half = 0; half < 2; ++half) {
      const double value = float_value(load_bits(half ? high : low, lane, 4), Type::f32, extra.flush);
      u64 bits;
      const double kept = extra.relu && value < 0 ? 0.0 : value;
      if (extra.to == Type::e4m3) bits = to_e4m3(kept);
      else if (extra.to == Type::e5m2) bits = to_e5m2(kept);
      else bits = encode_float(value, extra);
      packed |= bits << (half * 8 * bytes_of(extra.to));
    }
    store_bits(d, lane, extra.to_width, packed, extra.to_width == 2 ? Type::b16 : Type::b32);
  });
  return Step::next;
}
Step run_bf16x2_from_f32(Warp& warp, const Instruction& in, u32 mask) {
  const float *high = row<float>(warp, in.a), *low = row<float>(warp, in.b);
  compute(row<u32>(warp, in.d), mask, [=](int i) { return u32{to_bf16(high[i])} << 16 | to_bf16(low[i]); });
  return Step::next;
}

// e4m3x2 and e5m2x2 -> f16x2, and f16x2 -> e4m3x2, e5m2x2
Step run_cvt_f16x2(Warp& warp, const Instruction& in, u32 mask) {
  const auto& extra = *static_cast<const CvtExtra*>(in.extra);
  if (extra.to == Type::f16x2) {
    const u16* a = row<u16>(warp, in.a);
    compute(row<u32>(warp, in.d), mask, [=, from = extra.from](int i) {
      const auto wide = [&](u32 bits) {
        return to_f16(from == Type::e4m3x2 ? from_e4m3(static_cast<u8>(bits)) : from_e5m2(static_cast<u8>(bits)));
      };
      return u32{wide(a[i] >> 8)} << 16 | wide(a[i] & 0xff);
    });
  } else {
    const u32* a = row<u32>(warp, in.a);
    compute(row<u16>(warp, in.d), mask, [=, &extra](int i) {
      const auto narrow = [&](u32 bits) {
        double value = from_f16(static_cast<u16>(bits));
        if (extra.relu && value < 0) value = 0;
        return extra.to == Type::e4m3x2 ? to_e4m3(value) : to_e5m2(value);
      };
      return static_cast<u16>(narrow(a[i] >> 16) << 8 | narrow(a[i] & 0xffff));
    });
  }
  return Step::next;
}

void decode_pack(Decoder& decoder, const TextInstruction& text, Instruction& in, CvtExtra extra) {
  constexpr auto kHalf = [](Type type) {
    return type == Type::bf16x2 ? Type::bf16 : type == Type::f16x2 ? Type::f16 : type == Type::e4m3x2 ? Type::e4m3
           : type == Type::e5m2x2 ? Type::e5m2 : Type::none;
  };
  const Type packed = extra.to;
  extra.to = kHalf(packed);
  const bool is_pair = text.operands.size() == 3;
  in.d = decoder.write(text.operands[0], packed == Type::e4m3x2 || packed == Type::e5m2x2 ? Type::b16 : Type::b32);
  extra.to_width = bytes_of(packed);
  if (is_pair) {
    if (extra.from != Type::f32 || extra.to == Type::none) return;
    in.a = decoder.read(text.operands[1], Type::f32);
    in.b = decoder.read(text.operands[2], Type::f32);
    const bool is_plain = !extra.relu && !extra.saturate && !extra.flush && extra.rounding == Rounding::nearest;
    in.execute = packed == Type::bf16x2 && is_plain ? run_bf16x2_from_f32 : run_cvt_pair;
  } else {
    extra.to = packed;
    in.a = decoder.read(text.operands[1], packed == Type::f16x2 ? Type::b16 : Type::b32);
    in.execute = run_cvt_f16x2;
  }
  in.extra = decoder.keep(extra);
}

void decode_cvt(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi", "ftz", "sat", "satfinite", "relu"});
  decoder.operands(2, 3);
  CvtExtra extra{.to = decoder.type_at(-2), .from = decoder.type_at(-1), .to_width = 0, .from_width = 0};
  extra.saturate = decoder.has("sat") || decoder.has("satfinite");
  extra.flush = decoder.has("ftz");
  extra.relu = decoder.has("relu");
  if (decoder.has("rz") || decoder.has("rzi")) extra.rounding = Rounding::zero;
  if (decoder.has("rm") || decoder.has("rmi")) extra.rounding = Rounding::down;
  if (decoder.has("rp") || decoder.has("rpi")) extra.rounding = Rounding::up;
  if (decoder.has("rna")) extra.rounding = Rounding::away;
  const bool integer_rounding = decoder.has("rni") || decoder.has("rzi") || decoder.has("rmi") || decoder.has("rpi");
  extra.to_integer_first = integer_rounding && is_float(extra.to);
  if (text.operands.size() == 3 || extra.from == Type::e4m3x2 || extra.from == Type::e5m2x2 ||
      extra.from == Type::f16x2)
    return decode_pack(decoder, text, in, extra);
  if (bytes_of(extra.to) == 0 || extra.to == Type::bf16x2 || extra.to == Type::f16x2) return;
  // .sat on a float destination is [0, 1]; on f16 it is not .satfinite, which nvcc does not emit here.
  if (extra.saturate && (extra.to == Type::f16 || extra.to == Type::bf16) && !decoder.has("satfinite")) return;
  in.d = decoder.write_wide(text.operands[0], extra.to, extra.to_width);
  in.a = decoder.read_wide(text.operands[1], extra.from, extra.from_width);
  in.extra = decoder.keep(extra);
  in.execute = pick_cast(extra);
  if (in.execute == nullptr) in.execute = run_cvt;
}

// ---- cvta, isspacep: a generic address of shared memory is the host address of its window.

template <class T, bool kToGeneric>
Step run_cvta_shared(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  const T base = static_cast<T>(u64(cluster_of(warp).shared));
  const T offset = static_cast<T>(in.offset);
  compute(row<T>(warp, in.d), mask, [=](int i) { return static_cast<T>(a[i] + offset + (kToGeneric ? base : -base)); });
  return Step::next;
}
Step run_copy_64(Warp& warp, const Instruction& in, u32 mask) {
  const u64* a = row<u64>(warp, in.a);
  const u64 offset = static_cast<u64>(in.offset);
  compute(row<u64>(warp, in.d), mask, [=](int i) { return a[i] + offset; });
  return Step::next;
}

void decode_cvta(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(2, 2);
  if (decoder.type_at(-1) != Type::u64) return;
  const bool to_generic = !decoder.has("to");
  const bool shared = decoder.has("shared") || decoder.has("shared::cta") || decoder.has("shared::cluster");
  in.d = decoder.write(text.operands[0], Type::u64);
  if (decoder.is_register(text.operands[1])) {
    in.a = decoder.read(text.operands[1], Type::u64);
  } else {
    const auto found = decoder.address_row(text.operands[1], Space::generic);
    in.a = found.row;
    in.offset = found.offset;
  }
  in.execute = shared ? (to_generic ? run_cvta_shared<u64, true> : run_cvta_shared<u64, false>) : run_copy_64;
}

Step run_isspacep(Warp& warp, const Instruction& in, u32 mask) {
  const u64* a = row<u64>(warp, in.a);
  const Memory& memory = Memory::instance();
  const u64 own = u64(cluster_of(warp).shared) + warp.cta->shared_address;
  set_predicate(warp, in.d, mask, where(mask, [&](int i) {
    switch (in.detail) {
      case 0: return a[i] - own < (u64{1} << kRankShift);
      case 1: return is_shared_host(warp, a[i]);
      case 2: return memory.is_local(a[i]);
      case 3: return !memory.is_shared(a[i]) && !memory.is_local(a[i]);
      default: return a[i] - u64(cluster_of(warp).grid->parameters) < warp.program->parameter_bytes;
    }
  }));
  return Step::next;
}

void decode_isspacep(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(2, 2);
  in.d = decoder.write(text.operands[0], Type::pred);
  in.a = decoder.read(text.operands[1], Type::u64);
  in.detail = decoder.has("shared") || decoder.has("shared::cta") ? 0 : decoder.has("shared::cluster") ? 1
              : decoder.has("local") ? 2 : decoder.has("global") ? 3 : 4;
  in.execute = run_isspacep;
}

constexpr Entry kEntries[] = {
    {"set", "9.7.6.1", decode_set, Class::move},
    {"setp", "9.7.6.2", decode_setp, Class::move},
    {"selp", "9.7.6.3", decode_selp, Class::move},
    {"slct", "9.7.6.4", decode_slct, Class::move},
    {"cvta", "9.7.9.20", decode_cvta, Class::move},
    {"cvt", "9.7.9.21", decode_cvt, Class::conversion},
    {"isspacep", "9.7.9.19", decode_isspacep, Class::move},
};

}  // namespace

std::span<const Entry> conversion_entries() { return kEntries; }

}  // namespace glm5::emulator
