// Floating-point arithmetic of f32, f64, f16(x2) and bf16(x2). PTX ISA 9.7.3 to 9.7.5.
//
// Exact operations give the hardware's bits. The approximate ones (.approx, .full) give the nearest f32, from which
// hardware may differ by the last bits that the ISA allows.
#include <cfenv>

#include "decoder.h"
#include "lanes.h"
#include "numbers.h"

namespace glm5::emulator {
namespace {

// Instruction::detail.
enum Detail : u32 { kFtz = 1, kSaturate = 2, kRelu = 4, kNan = 8, kRoundingShift = 4 };
Rounding rounding_of(u32 detail) { return static_cast<Rounding>(detail >> kRoundingShift & 7); }

inline float flushed(float value) {
  return (bits_of(value) & 0x7f800000) == 0 ? float_of(bits_of(value) & 0x80000000) : value;
}
inline double flushed(double value) { return value; }
template <class T>
inline T saturated(T value) { return value > T{0} ? (value < T{1} ? value : T{1}) : T{0}; }

template <class T>
inline T canonical(T value) {
  if constexpr (sizeof(T) == 4) return value != value ? float_of(0x7fffffff) : value;
  else return value;
}

struct Add {
  template <class T>
  T operator()(T a, T b) const { return a + b; }
};
struct Subtract {
  template <class T>
  T operator()(T a, T b) const { return a - b; }
};
struct Multiply {
  template <class T>
  T operator()(T a, T b) const { return a * b; }
};
struct Divide {
  template <class T>
  T operator()(T a, T b) const { return a / b; }
};
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const { return __builtin_fma(a, b, c); }
  float operator()(float a, float b, float c) const { return __builtin_fmaf(a, b, c); }
};
struct Smaller {
  template <class T>
  T operator()(T a, T b) const { return a != a ? b : b != b ? a : a < b ? a : b < a ? b : (std::signbit(a) ? a : b); }
};
struct Larger {
  template <class T>
  T operator()(T a, T b) const { return a != a ? b : b != b ? a : a > b ? a : b > a ? b : (std::signbit(a) ? b : a); }
};
template <class F>
struct WithNan {
  template <class T>
  T operator()(T a, T b) const { return a != a || b != b ? static_cast<T>(NAN) : F{}(a, b); }
};
struct Absolute {
  template <class T>
  T operator()(T a) const { return std::fabs(a); }
};
struct Negate {
  template <class T>
  T operator()(T a) const { return -a; }
};
struct SquareRoot {
  template <class T>
  T operator()(T a) const { return std::sqrt(a); }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const { return T{1} / a; }
};
struct ReciprocalRoot {
  template <class T>
  T operator()(T a) const { return static_cast<T>(1.0 / std::sqrt(double(a))); }
};
struct Exp2 {
  template <class T>
  T operator()(T a) const { return static_cast<T>(std::exp2(double(a))); }
};
struct Log2 {
  template <class T>
  T operator()(T a) const { return static_cast<T>(std::log2(double(a))); }
};
struct Sine {
  template <class T>
  T operator()(T a) const { return static_cast<T>(std::sin(double(a))); }
};
struct Cosine {
  template <class T>
  T operator()(T a) const { return static_cast<T>(std::cos(double(a))); }
};
struct HyperbolicTangent {
  template <class T>
  T operator()(T a) const { return static_cast<T>(std::tanh(double(a))); }
};
struct CopySign {  // the sign of a, the magnitude of b
  template <class T>
  T operator()(T a, T b) const { return std::copysign(b, a); }
};

template <class T, class F>
inline T apply(const F& f, T a, T b, T c) {
  if constexpr (std::is_invocable_v<F, T, T, T>) return f(a, b, c);
  else if constexpr (std::is_invocable_v<F, T, T>) return f(a, b);
  else return f(a);
}
template <class F>
constexpr int kArity = std::is_invocable_v<F, float, float, float> ? 3 : std::is_invocable_v<F, float, float> ? 2 : 1;

// f32 and f64 with modifiers; the rounding mode is the processor's for the length of the loop.
template <class T, class F>
[[gnu::noinline]] Step run_modified(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b), *c = row<T>(warp, in.c);
  T* d = row<T>(warp, in.d);
  const u32 detail = in.detail;
  constexpr int kModes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD, FE_TONEAREST};
  std::fesetround(kModes[static_cast<int>(rounding_of(detail))]);
  each_lane(mask, [&](int i) {
    volatile T x = a[i], y = kArity<F> > 1 ? b[i] : T{0}, z = kArity<F> > 2 ? c[i] : T{0};
    if (detail & kFtz) {
      x = flushed(T{x});
      y = flushed(T{y});
      z = flushed(T{z});
    }
    volatile T result = apply<T>(F{}, x, y, z);
    if (detail & kFtz) result = flushed(T{result});
    if (detail & kSaturate) result = saturated(T{result});
    d[i] = canonical(T{result});
  });
  std::fesetround(FE_TONEAREST);
  return Step::next;
}

template <class T, class F>
Step run_plain(Warp& warp, const Instruction& in, u32 mask) {
  const T *a = row<T>(warp, in.a), *b = row<T>(warp, in.b), *c = row<T>(warp, in.c);
  compute(row<T>(warp, in.d), mask, [=](int i) {
    if constexpr (kArity<F> == 1) return canonical(static_cast<T>(F{}(a[i])));
    else if constexpr (kArity<F> == 2) return canonical(static_cast<T>(F{}(a[i], b[i])));
    else return canonical(static_cast<T>(F{}(a[i], b[i], c[i])));
  });
  return Step::next;
}

// Signs are moved without looking at the value: NaNs keep their bits.
template <class T, class F>
Step run_sign(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  const u32 detail = in.detail;
  compute(row<T>(warp, in.d), mask, [=](int i) { return F{}(detail & kFtz ? flushed(a[i]) : a[i]); });
  return Step::next;
}

struct HalfFormat {
  static float load(u16 bits) { return from_f16(bits); }
  static u16 store(float value) { return to_f16(value); }
};
struct BrainFormat {
  static float load(u16 bits) { return from_bf16(bits); }
  static u16 store(float value) { return to_bf16(value); }
};

// 16-bit formats, one or two in a register: computed in f32, which holds sums and products so well that rounding twice
// is rounding once; fma goes through round-to-odd.
template <class Number, int kCount, class F>
Step run_half(Warp& warp, const Instruction& in, u32 mask) {
  const u16 *a = row<u16>(warp, in.a), *b = row<u16>(warp, in.b), *c = row<u16>(warp, in.c);
  u16* d = row<u16>(warp, in.d);
  const u32 detail = in.detail;
  each_lane(mask, [&](int lane) {
    for (int i = lane * kCount; i < (lane + 1) * kCount; ++i) {
      const float x = Number::load(a[i]), y = kArity<F> > 1 ? Number::load(b[i]) : 0,
                  z = kArity<F> > 2 ? Number::load(c[i]) : 0;
      float result;
      if constexpr (std::is_same_v<F, MultiplyAdd>) result = fma_odd(x, y, z);
      else result = apply<float>(F{}, x, y, z);
      if (detail & kRelu) result = result > 0 ? result : result != result ? result : 0.0f;
      if (detail & kSaturate) result = saturated(result);
      if constexpr (std::is_same_v<F, Negate>) d[i] = static_cast<u16>(a[i] ^ 0x8000);
      else if constexpr (std::is_same_v<F, Absolute>) d[i] = static_cast<u16>(a[i] & 0x7fff);
      else d[i] = Number::store(result);
    }
  });
  return Step::next;
}

template <class F>
Executor pick(Type type, u32 detail) {
  constexpr bool kIsSign = std::is_same_v<F, Absolute> || std::is_same_v<F, Negate>;
  switch (type) {
    case Type::f32:
      if constexpr (kIsSign) return run_sign<float, F>;
      return detail & ~u32{kNan} ? run_modified<float, F> : run_plain<float, F>;
    case Type::f64:
      if constexpr (kIsSign) return run_sign<double, F>;
      return detail & ~u32{kNan} ? run_modified<double, F> : run_plain<double, F>;
    case Type::f16: return run_half<HalfFormat, 1, F>;
    case Type::f16x2: return run_half<HalfFormat, 2, F>;
    case Type::bf16: return run_half<BrainFormat, 1, F>;
    case Type::bf16x2: return run_half<BrainFormat, 2, F>;
    default: return nullptr;
  }
}

u32 detail_of(Decoder& decoder, Type type) {
  u32 detail = 0;
  if (decoder.has("ftz") && type == Type::f32) detail |= kFtz;
  if (decoder.has("sat")) detail |= kSaturate;
  if (decoder.has("relu")) detail |= kRelu;
  if (decoder.has("NaN")) detail |= kNan;
  const Rounding rounding = decoder.has("rz") ? Rounding::zero : decoder.has("rm") ? Rounding::down
                            : decoder.has("rp") ? Rounding::up : Rounding::nearest;
  if (rounding != Rounding::nearest && type != Type::f32 && type != Type::f64)
    decoder.fail("this rounding is not supported");
  return detail | static_cast<u32>(rounding) << kRoundingShift;
}

template <class F>
void decode_float(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"rn", "rz", "rm", "rp", "ftz", "sat", "relu", "approx", "full", "NaN"});
  decoder.operands(kArity<F> + 1, kArity<F> + 1);
  const Type type = decoder.type_at(-1);
  in.detail = detail_of(decoder, type);
  in.d = decoder.write(text.operands[0], type);
  in.a = in.b = in.c = decoder.read(text.operands[1], type);
  if (kArity<F> > 1) in.b = decoder.read(text.operands[2], type);
  if (kArity<F> > 2) in.c = decoder.read(text.operands[3], type);
  in.execute = pick<F>(type, in.detail);
  if constexpr (std::is_same_v<F, Smaller> || std::is_same_v<F, Larger>) {
    if (in.detail & kNan) in.execute = pick<WithNan<F>>(type, in.detail);
  }
}

// Three-input min and max are two steps of the two-input ones.
template <class F>
struct Thrice {
  template <class T>
  T operator()(T a, T b, T c) const { return F{}(F{}(a, b), c); }
};
template <class F>
void decode_extreme(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (text.operands.size() == 4) return decode_float<Thrice<F>>(decoder, text, in);
  decode_float<F>(decoder, text, in);
}

template <class T>
bool has_property(T value, u32 property) {
  switch (property) {
    case 0: return std::isfinite(value);
    case 1: return std::isinf(value);
    case 2: return !(value != value);
    case 3: return value != value;
    case 4: return std::isnormal(value);
    default: return std::fpclassify(value) == FP_SUBNORMAL;
  }
}

template <class T>
Step run_testp(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  set_predicate(warp, in.d, mask, where(mask, [&](int i) { return has_property(a[i], in.detail); }));
  return Step::next;
}

void decode_testp(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  constexpr std::string_view kProperties[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"};
  decoder.operands(2, 2);
  const Type type = decoder.type_at(-1);
  for (u32 p = 0; p < 6; ++p)
    if (decoder.has(kProperties[p])) in.detail = p;
  in.d = decoder.write(text.operands[0], Type::pred);
  in.a = decoder.read(text.operands[1], type);
  in.execute = type == Type::f32 ? run_testp<float> : type == Type::f64 ? run_testp<double> : nullptr;
}

constexpr Entry kEntries[] = {
    {"testp", "9.7.3.1", decode_testp, Class::floating},
    {"copysign", "9.7.3.2", decode_float<CopySign>, Class::floating},
    {"add", "9.7.3.3", decode_float<Add>, Class::floating},
    {"sub", "9.7.3.4", decode_float<Subtract>, Class::floating},
    {"mul", "9.7.3.5", decode_float<Multiply>, Class::floating},
    {"fma", "9.7.3.6", decode_float<MultiplyAdd>, Class::floating},
    {"mad", "9.7.3.7", decode_float<MultiplyAdd>, Class::floating},
    {"div", "9.7.3.8", decode_float<Divide>, Class::floating},
    {"abs", "9.7.3.9", decode_float<Absolute>, Class::floating},
    {"neg", "9.7.3.10", decode_float<Negate>, Class::floating},
    {"min", "9.7.3.11", decode_extreme<Smaller>, Class::floating},
    {"max", "9.7.3.12", decode_extreme<Larger>, Class::floating},
    {"rcp", "9.7.3.13", decode_float<Reciprocal>, Class::floating},
    {"sqrt", "9.7.3.15", decode_float<SquareRoot>, Class::floating},
    {"rsqrt", "9.7.3.16", decode_float<ReciprocalRoot>, Class::floating},
    {"sin", "9.7.3.18", decode_float<Sine>, Class::floating},
    {"cos", "9.7.3.19", decode_float<Cosine>, Class::floating},
    {"lg2", "9.7.3.20", decode_float<Log2>, Class::floating},
    {"ex2", "9.7.3.21", decode_float<Exp2>, Class::floating},
    {"tanh", "9.7.3.22", decode_float<HyperbolicTangent>, Class::floating},
};

}  // namespace

std::span<const Entry> float_entries() { return kEntries; }

}  // namespace glm5::emulator
