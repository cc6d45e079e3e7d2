// mov, ld, st, prefetch, mapa. PTX ISA 9.7.9. Atomics are in decode_atomic.cpp.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "decoder.h"
#include "memory.h"
#include "report.h"
#include "specials.h"

namespace glm5::emulator {
namespace {

// ---- mov

template <class T>
Step run_mov(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  compute(row<T>(warp, in.d), mask, [=](int i) { return a[i]; });
  return Step::next;
}
template <class T, class S>
Step run_mov_address(Warp& warp, const Instruction& in, u32 mask) {
  const S* a = row<S>(warp, in.a);
  const S offset = static_cast<S>(in.offset);
  compute(row<T>(warp, in.d), mask, [=](int i) { return static_cast<T>(a[i] + offset); });
  return Step::next;
}
Step run_mov_predicate(Warp& warp, const Instruction& in, u32 mask) {
  set_predicate(warp, in.d, mask, predicate(warp, in.a) ^ in.detail);
  return Step::next;
}
// Time is counted in instructions of this warp.
template <class T>
Step run_mov_clock(Warp& warp, const Instruction& in, u32 mask) {
  const T now = static_cast<T>(warp.executed >> in.detail);
  compute(row<T>(warp, in.d), mask, [=](int) { return now; });
  return Step::next;
}

// A register of several parts and the parts, in either direction.
template <class Whole, class Part, bool kPack>
Step run_mov_parts(Warp& warp, const Instruction& in, u32 mask) {
  constexpr u32 kParts = sizeof(Whole) / sizeof(Part);
  Part* whole = row<Part>(warp, kPack ? in.d : in.a);
  for (u32 p = 0; p < kParts; ++p) {
    Part* part = row<Part>(warp, in.list[p]);
    each_lane(mask, [&](int i) {
      if (kPack) whole[static_cast<u32>(i) * kParts + p] = part[i];
      else part[i] = whole[static_cast<u32>(i) * kParts + p];
    });
  }
  return Step::next;
}

template <bool kPack>
Executor pick_parts(int whole, size_t parts) {
  if (whole == 4 && parts == 2) return run_mov_parts<u32, u16, kPack>;
  if (whole == 8 && parts == 2) return run_mov_parts<u64, u32, kPack>;
  if (whole == 8 && parts == 4) return run_mov_parts<u64, u16, kPack>;
  if (whole == 4 && parts == 4) return nullptr;
  if (whole == 16 && parts == 2) return run_mov_parts<unsigned __int128, u64, kPack>;
  if (whole == 16 && parts == 4) return run_mov_parts<unsigned __int128, u32, kPack>;
  return nullptr;
}

void decode_mov_parts(Decoder& decoder, const TextInstruction& text, Instruction& in, bool pack) {
  const Type type = decoder.type_at(-1);
  const auto& parts = text.operands[pack ? 1 : 0].parts;
  const int bytes = bytes_of(type) / static_cast<int>(parts.size());
  const Type part = bytes == 2 ? Type::b16 : bytes == 4 ? Type::b32 : bytes == 8 ? Type::b64 : Type::b8;
  std::vector<Operand> rows;
  for (const TextOperand& operand : parts) {
    // `_` parts are not wanted; each needs a row of its own only because the scratch row is one.
    rows.push_back(pack ? decoder.read(operand, part) : decoder.write(operand, part));
  }
  in.list = decoder.keep_list(rows);
  if (pack) in.d = decoder.write(text.operands[0], type);
  else in.a = decoder.read(text.operands[1], type);
  in.execute = pack ? pick_parts<true>(bytes_of(type), parts.size()) : pick_parts<false>(bytes_of(type), parts.size());
}

void decode_mov_address(Decoder& decoder, const TextInstruction& text, Instruction& in, Type type) {
  const auto found = decoder.address_row(text.operands[1], Space::generic);
  in.a = found.row;
  in.offset = found.offset;
  in.execute = bytes_of(type) == 8   ? run_mov_address<u64, u64>
               : bytes_of(type) == 4 ? run_mov_address<u32, u64>
                                     : nullptr;
}

void decode_mov(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({});
  decoder.operands(2, 2);
  const Type type = decoder.type_at(-1);
  const TextOperand &to = text.operands[0], &from = text.operands[1];
  if (from.kind == TextOperand::Kind::vector) return decode_mov_parts(decoder, text, in, true);
  if (to.kind == TextOperand::Kind::vector) return decode_mov_parts(decoder, text, in, false);
  in.d = decoder.write(to, type);
  if (type == Type::pred) {
    in.a = decoder.read(from, type);
    in.detail = from.negated ? kAllLanes : 0;
    in.execute = run_mov_predicate;
    return;
  }
  if (from.name == "%clock" || from.name == "%clock_hi" || from.name == "%clock64" || from.name == "%globaltimer" ||
      from.name == "%globaltimer_lo") {
    in.detail = from.name == "%clock_hi" ? 32 : 0;
    in.execute = bytes_of(type) == 8 ? run_mov_clock<u64> : run_mov_clock<u32>;
    return;
  }
  Special special;
  int bytes;
  const bool is_name = from.kind == TextOperand::Kind::name && !decoder.is_register(from);
  if (is_name && !find_special(from.name, special, bytes)) return decode_mov_address(decoder, text, in, type);
  in.a = decoder.read(from, type);
  switch (bytes_of(type)) {
    case 2: in.execute = run_mov<u16>; break;
    case 4: in.execute = run_mov<u32>; break;
    case 8: in.execute = run_mov<u64>; break;
    case 16: in.execute = run_mov<unsigned __int128>; break;
    default: break;
  }
}

// ---- ld, st

// T: type in memory; W: of the row. in.list: the rows of a vector, in.count of them.
template <class T, class W>
Step run_load(Warp& warp, const Instruction& in, u32 mask) {
  u64 hosts[kLanes];
  host_addresses(warp, in, mask, hosts);
  check_access(warp, in, Access::read, hosts, mask, sizeof(T) * in.count, sizeof(T) * in.count);
  for (u32 v = 0; v < in.count; ++v) {
    W* d = row<W>(warp, in.list[v]);
    each_lane(mask, [&](int i) {
      T value;
      std::memcpy(&value, reinterpret_cast<const u8*>(hosts[i]) + v * sizeof(T), sizeof value);
      d[i] = static_cast<W>(value);
    });
  }
  return Step::next;
}

// Lanes that store to one address by one instruction: which of them wins is not defined, unless they agree.
template <class T, class W>
void check_agreement(Warp& warp, const Instruction& in, u32 mask, const u64* hosts) {
  for (u32 v = 0; v < in.count; ++v) {
    const W* b = row<W>(warp, in.list[v]);
    const u32 lost = where(mask, [&](int i) {
      const T value = static_cast<T>(b[i]);
      return std::memcmp(reinterpret_cast<const u8*>(hosts[i]) + v * sizeof(T), &value, sizeof value) != 0;
    });
    if (lost == 0) continue;
    const int lane = first_lane(lost);
    const u64 at = is_shared_host(warp, hosts[lane]) ? shared_address(warp, hosts[lane]) : hosts[lane];
    fault(warp, lane, "race", "stores to ", Hex{at},
          ", and another lane of the warp stores another value there by the same instruction");
  }
}

template <class T, class W>
Step run_store(Warp& warp, const Instruction& in, u32 mask) {
  u64 hosts[kLanes];
  host_addresses(warp, in, mask, hosts);
  check_access(warp, in, Access::write, hosts, mask, sizeof(T) * in.count, sizeof(T) * in.count);
  for (u32 v = 0; v < in.count; ++v) {
    const W* b = row<W>(warp, in.list[v]);
    each_lane(mask, [&](int i) {
      const T value = static_cast<T>(b[i]);
      std::memcpy(reinterpret_cast<u8*>(hosts[i]) + v * sizeof(T), &value, sizeof value);
    });
  }
  if (!in.is_volatile) check_agreement<T, W>(warp, in, mask, hosts);
  return Step::next;
}

// Kernel parameters are the same for all lanes where the address is: no checks, one load.
template <class T, class W>
Step run_load_parameter(Warp& warp, const Instruction& in, u32 mask) {
  const u8* from = reinterpret_cast<const u8*>(row<u64>(warp, in.a)[0]) + in.offset;
  for (u32 v = 0; v < in.count; ++v) {
    T value;
    std::memcpy(&value, from + v * sizeof(T), sizeof value);
    compute(row<W>(warp, in.list[v]), mask, [=](int) { return static_cast<W>(value); });
  }
  return Step::next;
}

// .param variables of calls: in.a is an area of in.detail bytes per lane.
template <class T, class W, bool kStore>
Step run_area(Warp& warp, const Instruction& in, u32 mask) {
  u8* area = row<u8>(warp, in.a) + in.offset;
  for (u32 v = 0; v < in.count; ++v) {
    W* values = row<W>(warp, in.list[v]);
    each_lane(mask, [&](int i) {
      u8* at = area + static_cast<u32>(i) * in.detail + v * sizeof(T);
      T value = static_cast<T>(values[i]);
      if (kStore) {
        std::memcpy(at, &value, sizeof value);
      } else {
        std::memcpy(&value, at, sizeof value);
        values[i] = static_cast<W>(value);
      }
    });
  }
  return Step::next;
}

enum class Kind { load, store, parameter, load_area, store_area };

template <class T, class W>
Executor of_kind(Kind kind) {
  switch (kind) {
    case Kind::load: return run_load<T, W>;
    case Kind::store: return run_store<T, W>;
    case Kind::parameter: return run_load_parameter<T, W>;
    case Kind::load_area: return run_area<T, W, false>;
    case Kind::store_area: return run_area<T, W, true>;
  }
  return nullptr;
}

template <class T>
Executor of_width(Kind kind, int width) {
  if constexpr (sizeof(T) == 16) {
    return width == 16 ? of_kind<T, T>(kind) : nullptr;
  } else {
    // A signed load into a wider register extends the sign: the row's type has the sign of the memory's.
    constexpr bool kSigned = std::is_signed_v<T>;
    if (width < static_cast<int>(sizeof(T))) return nullptr;
    switch (width) {
      case 2: return sizeof(T) <= 2 ? of_kind<T, std::conditional_t<kSigned, i16, u16>>(kind) : nullptr;
      case 4: return sizeof(T) <= 4 ? of_kind<T, std::conditional_t<kSigned, i32, u32>>(kind) : nullptr;
      case 8: return of_kind<T, std::conditional_t<kSigned, i64, u64>>(kind);
      default: return nullptr;
    }
  }
}

Executor pick(Kind kind, Type type, int width) {
  switch (type) {
    case Type::b8: case Type::u8: return of_width<u8>(kind, width);
    case Type::s8: return of_width<i8>(kind, width);
    case Type::b16: case Type::u16: case Type::f16: case Type::bf16: return of_width<u16>(kind, width);
    case Type::s16: return of_width<i16>(kind, width);
    case Type::b32:
    case Type::u32:
    case Type::f32:
    case Type::f16x2:
    case Type::bf16x2:
      return of_width<u32>(kind, width);
    case Type::s32: return of_width<i32>(kind, width);
    case Type::b64: case Type::u64: case Type::f64: case Type::s64: return of_width<u64>(kind, width);
    case Type::b128: return of_width<unsigned __int128>(kind, width);
    default: return nullptr;
  }
}

Space space_of(Decoder& decoder) {
  if (decoder.has("global")) return Space::global;
  if (decoder.has("shared") || decoder.has("shared::cta") || decoder.has("shared::cluster")) return Space::shared;
  if (decoder.has("local")) return Space::local;
  if (decoder.has("param") || decoder.has("param::entry") || decoder.has("param::func")) return Space::param;
  if (decoder.has("const")) return Space::constant;
  return Space::generic;
}

// Cache and eviction hints change nothing here.
void allow_access(Decoder& decoder) {
  decoder.allow({"global",
                 "shared",
                 "shared::cta",
                 "shared::cluster",
                 "local",
                 "param",
                 "param::entry",
                 "param::func",
                 "const",
                 "v2",
                 "v4",
                 "v8",
                 "volatile",
                 "relaxed",
                 "acquire",
                 "release",
                 "weak",
                 "mmio",
                 "cta",
                 "cluster",
                 "gpu",
                 "sys",
                 "nc",
                 "ca",
                 "cg",
                 "cs",
                 "cv",
                 "lu",
                 "wb",
                 "wt",
                 "L1::evict_normal",
                 "L1::evict_unchanged",
                 "L1::evict_first",
                 "L1::evict_last",
                 "L1::no_allocate",
                 "L2::cache_hint",
                 "L2::64B",
                 "L2::128B",
                 "L2::256B",
                 "L2::evict_last",
                 "L2::evict_normal",
                 "L2::evict_first",
                 "unified"});
}

void decode_access(Decoder& decoder, const TextInstruction& text, Instruction& in, bool is_store) {
  allow_access(decoder);
  decoder.operands(2, 3);
  const Type type = decoder.type_at(-1);
  const TextOperand &address = text.operands[is_store ? 0 : 1], &value = text.operands[is_store ? 1 : 0];
  in.is_volatile =
      decoder.has("volatile") || decoder.has("relaxed") || decoder.has("acquire") || decoder.has("release");
  const bool is_vector = value.kind == TextOperand::Kind::vector;
  std::vector<Operand> rows;
  int width = 0;
  for (const TextOperand& part : is_vector ? value.parts : std::vector<TextOperand>{value})
    rows.push_back(is_store ? decoder.read_wide(part, type, width) : decoder.write_wide(part, type, width));
  if (width == 1) {  // an immediate or a sink of 8 bits
    rows.clear();
    for (const TextOperand& part : is_vector ? value.parts : std::vector<TextOperand>{value})
      rows.push_back(is_store ? decoder.read(part, Type::b16) : decoder.write(part, Type::b16));
    width = 2;
  }
  in.count = static_cast<u32>(rows.size());
  in.list = decoder.keep_list(rows);
  Kind kind = is_store ? Kind::store : Kind::load;
  const Space space = space_of(decoder);
  TextOperand base;
  base.name = address.name;
  if (space == Space::param && !decoder.is_register(base)) {
    const auto place = decoder.linker().variable(decoder.function(), static_cast<int>(text.scope), address.name);
    if (!place.exists) decoder.fail("unknown parameter ", address.name);
    if (!place.is_kernel_parameter) {
      in.a.offset = place.area & 0x3fffffff;
      in.offset = address.offset;
      in.detail = place.lane_bytes;
      in.execute = pick(is_store ? Kind::store_area : Kind::load_area, type, width);
      return;
    }
    if (is_store) decoder.fail("a kernel's parameter cannot be written");
    const u64 bytes = static_cast<u64>(address.offset) + static_cast<u64>(bytes_of(type)) * in.count;
    if (place.offset + bytes > decoder.linker().program().parameter_bytes) decoder.fail("reads beyond the parameters");
    kind = Kind::parameter;
  }
  decoder.address(address, space, in);
  in.execute = pick(kind, type, width);
}

void decode_ld(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decode_access(decoder, text, in, false);
}
void decode_st(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decode_access(decoder, text, in, true);
}

Step run_nothing(Warp&, const Instruction&, u32) { return Step::next; }
void decode_nothing(Decoder&, const TextInstruction&, Instruction& in) { in.execute = run_nothing; }

// ---- createpolicy: an opaque hint, which nothing here looks at

void require_fraction(Decoder& decoder, const TextOperand& operand) {
  if (operand.kind != TextOperand::Kind::float32) decoder.fail("the fraction must be a constant of type .f32");
  const float fraction = __builtin_bit_cast(float, static_cast<u32>(operand.bits));
  if (!(fraction > 0 && fraction <= 1)) decoder.fail("the fraction must be above 0 and at most 1, got ", fraction);
}

void decode_createpolicy(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"range", "fractional", "cvt", "global", "L2", "L2::evict_last", "L2::evict_normal", "L2::evict_first",
                 "L2::evict_unchanged"});
  decoder.operands(decoder.has("fractional") ? 1 : decoder.has("cvt") ? 2 : 4, decoder.has("range") ? 4 : 2);
  if (decoder.has("fractional") && text.operands.size() == 2) require_fraction(decoder, text.operands[1]);
  in.d = decoder.write(text.operands[0], Type::b64);
  constexpr u64 kSomePolicy = 0x12f0000000000000;
  in.a = decoder.constant(kSomePolicy, 8);
  in.execute = run_mov<u64>;
}

// ---- mapa, getctarank

template <class T, bool kIsGeneric>
Step run_mapa(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  const u32* b = row<u32>(warp, in.b);
  const T base = kIsGeneric ? static_cast<T>(u64(cluster_of(warp).shared)) : T{0};
  const size_t ranks = cluster_of(warp).ctas.size();
  each_lane(mask, [&](int i) {
    if (b[i] >= ranks) fault(warp, i, "cluster", "mapa to block ", b[i], " of a cluster of ", ranks);
  });
  const T offset = static_cast<T>(in.offset), keep = (T{1} << kRankShift) - 1;
  compute(row<T>(warp, in.d), mask,
          [=](int i) { return static_cast<T>(base + (((a[i] + offset - base) & keep) | T{b[i]} << kRankShift)); });
  return Step::next;
}

void decode_mapa(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"shared::cluster"});
  decoder.operands(3, 3);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], type);
  if (decoder.is_register(text.operands[1])) {
    in.a = decoder.read(text.operands[1], type);
  } else {
    const auto found = decoder.address_row(text.operands[1], Space::shared);
    in.a = type == Type::u32 ? special_row(Special::shared_base) : found.row;
    in.offset = found.offset;
  }
  in.b = decoder.read(text.operands[2], Type::u32);
  const bool generic = !decoder.has("shared::cluster");
  in.execute = type == Type::u32 ? run_mapa<u32, false> : generic ? run_mapa<u64, true> : run_mapa<u64, false>;
}

template <class T, bool kIsGeneric>
Step run_getctarank(Warp& warp, const Instruction& in, u32 mask) {
  const T* a = row<T>(warp, in.a);
  const T base = kIsGeneric ? static_cast<T>(u64(cluster_of(warp).shared)) : T{0};
  compute(row<u32>(warp, in.d), mask, [=](int i) { return static_cast<u32>((a[i] - base) >> kRankShift); });
  return Step::next;
}

void decode_getctarank(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(2, 2);
  const Type type = decoder.type_at(-1);
  in.d = decoder.write(text.operands[0], Type::u32);
  in.a = decoder.read(text.operands[1], type);
  const bool generic = !decoder.has("shared::cluster");
  in.execute = type == Type::u32 ? run_getctarank<u32, false>
               : generic         ? run_getctarank<u64, true>
                                 : run_getctarank<u64, false>;
}

constexpr Entry kEntries[] = {
    {"mov", "9.7.9.4", decode_mov, Class::move},
    {"ld", "9.7.9.8", decode_ld, Class::memory},
    {"ldu", "9.7.9.10", decode_ld, Class::memory},
    {"st", "9.7.9.11", decode_st, Class::memory},
    {"prefetch", "9.7.9.15", decode_nothing, Class::memory},
    {"prefetchu", "9.7.9.15", decode_nothing, Class::memory},
    {"applypriority", "9.7.9.16", decode_nothing, Class::memory},
    {"discard", "9.7.9.17", decode_nothing, Class::memory},
    {"createpolicy", "9.7.9.18", decode_createpolicy, Class::move},
    {"mapa", "9.7.9.23", decode_mapa, Class::move},
    {"getctarank", "9.7.9.24", decode_getctarank, Class::move},
};

}  // namespace

std::span<const Entry> memory_entries() { return kEntries; }

}  // namespace glm5::emulator
