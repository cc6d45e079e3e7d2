// atom and red. PTX ISA 9.7.13.5 and 9.7.13.6. Lanes act one after another; the emulator runs on one thread.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "decoder.h"
#include "numbers.h"

namespace glm5::emulator {
namespace {

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return a + b;
    else return static_cast<T>(static_cast<std::make_unsigned_t<T>>(a) + static_cast<std::make_unsigned_t<T>>(b));
  }
};
struct Smaller {
  template <class T>
  T operator()(T a, T b) const { return std::min(a, b); }
};
struct Larger {
  template <class T>
  T operator()(T a, T b) const { return std::max(a, b); }
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
struct Exchange {
  template <class T>
  T operator()(T, T b) const { return b; }
};
struct Increment {
  template <class T>
  T operator()(T a, T b) const { return a >= b ? T{0} : static_cast<T>(a + 1); }
};
struct Decrement {
  template <class T>
  T operator()(T a, T b) const { return a == 0 || a > b ? b : static_cast<T>(a - 1); }
};

// Pairs of 16-bit floats, and single ones, kept as their bits.
struct Half {
  u16 bits;
};
struct Brain {
  u16 bits;
};
template <class Number>
struct Pair {
  Number low, high;
};
inline Half plus(Half a, Half b) { return {to_f16(from_f16(a.bits) + from_f16(b.bits))}; }
inline Brain plus(Brain a, Brain b) { return {to_bf16(from_bf16(a.bits) + from_bf16(b.bits))}; }
struct AddHalf {
  template <class T>
  T operator()(T a, T b) const { return plus(a, b); }
  template <class T>
  Pair<T> operator()(Pair<T> a, Pair<T> b) const { return {plus(a.low, b.low), plus(a.high, b.high)}; }
};

// in.list: the values to combine, in.count of them; then, where in.detail, as many destinations.
template <class T, class F>
Step run_atomic(Warp& warp, const Instruction& in, u32 mask) {
  u64 hosts[kLanes];
  host_addresses(warp, in, mask, hosts);
  const u32 bytes = static_cast<u32>(sizeof(T)) * in.count;
  check_access(warp, in, Access::atomic, hosts, mask, bytes, bytes);
  each_lane(mask, [&](int lane) {
    for (u32 v = 0; v < in.count; ++v) {
      u8* at = reinterpret_cast<u8*>(hosts[lane]) + v * sizeof(T);
      T before, operand;
      std::memcpy(&before, at, sizeof before);
      std::memcpy(&operand, row<T>(warp, in.list[v]) + lane, sizeof operand);
      const T after = F{}(before, operand);
      std::memcpy(at, &after, sizeof after);
      if (in.detail) std::memcpy(row<T>(warp, in.list[in.count + v]) + lane, &before, sizeof before);
    }
  });
  wake(cluster_of(warp));
  return Step::next;
}

template <class T>
Step run_cas(Warp& warp, const Instruction& in, u32 mask) {
  u64 hosts[kLanes];
  host_addresses(warp, in, mask, hosts);
  check_access(warp, in, Access::atomic, hosts, mask, sizeof(T), sizeof(T));
  const T *expected = row<T>(warp, in.b), *desired = row<T>(warp, in.c);
  T* d = row<T>(warp, in.d);
  each_lane(mask, [&](int lane) {
    T before;
    std::memcpy(&before, reinterpret_cast<u8*>(hosts[lane]), sizeof before);
    if (before == expected[lane]) std::memcpy(reinterpret_cast<u8*>(hosts[lane]), &desired[lane], sizeof before);
    d[lane] = before;
  });
  wake(cluster_of(warp));
  return Step::next;
}

template <class F>
Executor pick_integer_atomic(Type type) {
  switch (type) {
    case Type::u32: case Type::b32: return run_atomic<u32, F>;
    case Type::s32: return run_atomic<i32, F>;
    case Type::u64: case Type::b64: return run_atomic<u64, F>;
    case Type::s64: return run_atomic<i64, F>;
    default: return nullptr;
  }
}

Executor pick_add(Type type) {
  switch (type) {
    case Type::f32: return run_atomic<float, Add>;
    case Type::f64: return run_atomic<double, Add>;
    case Type::f16: return run_atomic<Half, AddHalf>;
    case Type::bf16: return run_atomic<Brain, AddHalf>;
    case Type::f16x2: return run_atomic<Pair<Half>, AddHalf>;
    case Type::bf16x2: return run_atomic<Pair<Brain>, AddHalf>;
    default: return pick_integer_atomic<Add>(type);
  }
}

Executor pick(Decoder& decoder, Type type) {
  if (decoder.has("add")) return pick_add(type);
  if (decoder.has("min")) return pick_integer_atomic<Smaller>(type);
  if (decoder.has("max")) return pick_integer_atomic<Larger>(type);
  if (decoder.has("and")) return pick_integer_atomic<And>(type);
  if (decoder.has("or")) return pick_integer_atomic<Or>(type);
  if (decoder.has("xor")) return pick_integer_atomic<Xor>(type);
  if (decoder.has("exch")) return pick_integer_atomic<Exchange>(type);
  if (decoder.has("inc")) return pick_integer_atomic<Increment>(type);
  if (decoder.has("dec")) return pick_integer_atomic<Decrement>(type);
  return nullptr;
}

Type bits_type(Type type) {
  return bytes_of(type) == 2   ? Type::b16
         : bytes_of(type) == 4 ? Type::b32
         : bytes_of(type) == 8 ? Type::b64
                               : Type::b128;
}

void decode_atomic(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sem", "relaxed", "acquire", "release", "acq_rel", "cta", "cluster", "gpu", "sys", "global", "shared",
                 "shared::cta", "shared::cluster", "add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas",
                 "noftz", "v2", "v4", "v8", "L2::cache_hint"});
  const Type type = decoder.type_at(-1), bits = bits_type(type);
  const bool has_result = text.words[0] == "atom";
  size_t at = has_result ? 1 : 0;
  const Space space = decoder.has("global") ? Space::global
                      : decoder.has("shared") || decoder.has("shared::cta") || decoder.has("shared::cluster")
                          ? Space::shared
                          : Space::generic;
  decoder.address(text.operands.at(at), space, in);
  in.is_volatile = true;
  if (decoder.has("cas")) {
    decoder.operands(4, 4);
    in.d = decoder.write(text.operands[0], bits);
    in.b = decoder.read(text.operands[2], bits);
    in.c = decoder.read(text.operands[3], bits);
    in.execute = bytes_of(type) == 2 ? run_cas<u16> : bytes_of(type) == 4 ? run_cas<u32>
                 : bytes_of(type) == 8 ? run_cas<u64> : run_cas<unsigned __int128>;
    return;
  }
  std::vector<Operand> rows;
  const auto add = [&](const TextOperand& operand, bool is_result) {
    const bool is_vector = operand.kind == TextOperand::Kind::vector;
    for (const TextOperand& part : is_vector ? operand.parts : std::vector<TextOperand>{operand})
      rows.push_back(is_result ? decoder.write(part, bits) : decoder.read(part, bits));
  };
  add(text.operands.at(at + 1), false);
  in.count = static_cast<u32>(rows.size());
  if (has_result) add(text.operands[0], true);
  in.detail = has_result;
  in.list = decoder.keep_list(rows);
  in.execute = pick(decoder, type);
}

constexpr Entry kEntries[] = {
    {"atom", "9.7.13.5", decode_atomic, Class::memory},
    {"red", "9.7.13.6", decode_atomic, Class::memory},
};

}  // namespace

std::span<const Entry> atomic_entries() { return kEntries; }

}  // namespace glm5::emulator
