// tensormap.replace, tensormap.cp_fenceproxy and fence.proxy.tensormap: tensor maps that a kernel changes.
// PTX ISA 9.7.9.28, 9.7.13.16 and 9.7.13.4.
#include <algorithm>
#include <cstring>

#include "async_decode.h"
#include "lanes.h"
#include "report.h"

namespace glm5::emulator {

// A map that this launch has changed is only read after an acquire that came later and is ordered before its use.
void require_acquired_map(Warp& warp, int lane, u64 address, const TensorMap& map) {
  Cluster& cluster = cluster_of(warp);
  const auto version = cluster.grid->tensor_maps.version(address);
  if (version.number == 0) return;
  if (!version.is_released) {
    fault(warp, lane, "proxy", "the tensor map at ", Hex{address},
          " was changed by this kernel and not released (fence.proxy.tensormap::generic.release)");
  }
  const auto& acquired = async_of(cluster).acquired_maps[address];
  const bool is_acquired = std::any_of(acquired.begin(), acquired.end(), [&](const AcquiredMap& each) {
    return each.version == version.number && async_of(warp).order.knows(lane, each.when);
  });
  if (!is_acquired) {
    fault(warp, lane, "proxy", "the tensor map at ", Hex{address},
          " was changed by this kernel and not acquired since (fence.proxy.tensormap::generic.acquire)");
  }
  if (const std::string rule = broken_map_rule(map); !rule.empty()) fault(warp, lane, "tensor map", rule);
}

namespace {

enum class Field : int {
  global_address,
  rank,
  box_dim,
  global_dim,
  global_stride,
  element_stride,
  elemtype,
  interleave_layout,
  swizzle_mode,
  swizzle_atomicity,
  fill_mode
};

struct FieldRule {
  std::string_view name;
  Field field;
  int ordinals;  // 0: takes none
  bool is_64;
  i64 constants;  // 0: a register; else an immediate below it
};
constexpr FieldRule kFields[] = {
    {"global_address", Field::global_address, 0, true, 0},
    {"rank", Field::rank, 0, false, 0},
    {"box_dim", Field::box_dim, 5, false, 0},
    {"global_dim", Field::global_dim, 5, false, 0},
    {"global_stride", Field::global_stride, 4, true, 0},
    {"element_stride", Field::element_stride, 5, false, 0},
    {"elemtype", Field::elemtype, 0, false, 13},
    {"interleave_layout", Field::interleave_layout, 0, false, 1},  // none
    {"swizzle_mode", Field::swizzle_mode, 0, false, 4},
    {"swizzle_atomicity", Field::swizzle_atomicity, 0, false, 1},  // 16 bytes
    {"fill_mode", Field::fill_mode, 0, false, 2},
};

// The instruction numbers the types otherwise than the driver.
constexpr TensorElement kElements[] = {
    TensorElement::u8_,  TensorElement::u16_, TensorElement::u32_,    TensorElement::i32_,    TensorElement::u64_,
    TensorElement::i64_, TensorElement::f16,  TensorElement::f32,     TensorElement::f32_ftz, TensorElement::f64,
    TensorElement::bf16, TensorElement::tf32, TensorElement::tf32_ftz};

struct ReplaceForm {
  AddressRow address;
  Operand value;
  Field field{};
  u32 ordinal = 0;
  bool in_shared = false;
};

// A value that the map's field cannot hold.
void require(Warp& warp, int lane, bool fits, const char* what, u64 value) {
  if (!fits) fault(warp, lane, "tensor map", "a tensor map cannot hold ", what, " of ", value);
}

void set_field(Warp& warp, int lane, const ReplaceForm& form, u64 value, TensorMap& map) {
  const u32 at = form.ordinal;
  switch (form.field) {
    case Field::global_address:
      map.address = value;
      break;
    case Field::rank:
      require(warp, lane, value < kMaxTensorRank, "a rank (less one)", value);
      map.rank = static_cast<u8>(value + 1);
      break;
    case Field::box_dim:
      require(warp, lane, value >= 1 && value <= 256, "a box", value);
      map.box[at] = static_cast<u16>(value);
      break;
    case Field::global_dim:
      require(warp, lane, value >= 1, "a dimension", value);
      map.last[at] = static_cast<u32>(value - 1);
      break;
    case Field::global_stride:
      map.stride[at] = value;
      break;
    case Field::element_stride:
      require(warp, lane, value >= 1 && value <= 8, "an element stride", value);
      map.step[at] = static_cast<u8>(value);
      break;
    case Field::elemtype:
      map.element = static_cast<u8>(kElements[value]);
      break;
    case Field::swizzle_mode:
      map.swizzle = static_cast<u8>(value);
      break;
    case Field::fill_mode:
      map.fills_nan = value == 1;
      break;
    case Field::interleave_layout:
    case Field::swizzle_atomicity:
      break;
  }
}

bool is_blank(const u8* bytes) {
  return std::all_of(bytes, bytes + kTensorMapBytes, [](u8 byte) { return byte == 0; });
}

// A copy that is still to read the map's tensor or shared memory must not see another map.
void require_unused(Warp& warp, int lane, u64 address) {
  for (const PendingCopy& copy : async_of(cluster_of(warp)).pending) {
    if (copy.tensor_map != address || copy.has_read) continue;
    fault(warp, lane, "tensor map", "changes the tensor map at ", Hex{address},
          " while a bulk store that uses it is under way (cp.async.bulk.wait_group.read)");
  }
}

void require_aligned(Warp& warp, int lane, u64 address) {
  if (address % kTensorMapAlignment)
    fault(warp, lane, "alignment", "a tensor map must be aligned to 64 bytes, got ", Hex{address});
}

// The bytes in shared memory are touched as by an ordinary access of all of them, by lanes that act as one. A copy by
// the warp is over before any lane goes on: it is .sync, and the reading comes before the release that it ends with.
u8* touch_shared(Warp& warp, int lane, u32 lanes, u64 host, Access access) {
  require_aligned(warp, lane, host);
  if (!is_shared_host(warp, host)) fault(warp, lane, "bounds", "the tensor map must be in shared memory");
  check_bytes(warp, lane, Access::read, host, kTensorMapBytes);
  RaceCheck& races = async_of(cluster_of(warp)).races;
  const u32 address = shared_address(warp, host);
  const bool writes = access == Access::write;
  async_of(warp).order.note_access(lanes);
  Accessor who = accessor_of(warp, lane, lanes);
  who.is_joint = !writes;
  check_conflict(warp, lane,
                 writes ? races.write(address, kTensorMapBytes, who) : races.read(address, kTensorMapBytes, who),
                 writes ? "changes" : "copies");
  return reinterpret_cast<u8*>(host);
}

u8* touch_global(Warp& warp, int lane, u64 address, bool is_read) {
  require_aligned(warp, lane, address);
  if (is_read) check_bytes(warp, lane, Access::read, address, kTensorMapBytes);
  check_bytes(warp, lane, Access::write, address, kTensorMapBytes);
  require_unused(warp, lane, address);
  return reinterpret_cast<u8*>(address);
}

Step run_replace(Warp& warp, const Instruction& in, u32 mask) {
  const auto& form = *static_cast<const ReplaceForm*>(in.extra);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const u64 host = form.address.host(warp, lane, form.in_shared ? Space::shared : Space::global);
    u8* bytes = form.in_shared ? touch_shared(warp, lane, u32{1} << lane, host, Access::write)
                               : touch_global(warp, lane, host, true);
    TensorMap map;
    std::memcpy(&map, bytes, sizeof map);
    if (is_blank(bytes)) map.magic = TensorMap::kMagic;
    if (map.magic != TensorMap::kMagic)
      fault(warp, lane, "tensor map", "there is no tensor map at ", Hex{host}, ", nor 128 bytes of zeros");
    set_field(warp, lane, form, in.detail ? row<u64>(warp, form.value)[lane] : row<u32>(warp, form.value)[lane], map);
    std::memcpy(bytes, &map, sizeof map);
    if (!form.in_shared) cluster_of(warp).grid->tensor_maps.change(host, u64(&warp), false);
  }
  return Step::next;
}

struct CopyForm {
  AddressRow to, from;
};

Step run_cp_fenceproxy(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  const auto& form = *static_cast<const CopyForm*>(in.extra);
  const int first = first_lane(mask);
  const u64 to = form.to.at(warp, first), from = form.from.host(warp, first, Space::shared);
  each_lane(mask, [&](int lane) {
    if (form.to.at(warp, lane) != to || form.from.host(warp, lane, Space::shared) != from)
      fault(warp, lane, "tensor map", "the lanes of a warp name different tensor maps");
  });
  const u8* source = touch_shared(warp, first, mask, from, Access::read);
  std::memcpy(touch_global(warp, first, to, false), source, kTensorMapBytes);
  cluster_of(warp).grid->tensor_maps.change(to, u64(&warp), true);
  return Step::next;
}

Step run_release(Warp& warp, const Instruction&, u32) {
  cluster_of(warp).grid->tensor_maps.release(u64(&warp));
  return Step::next;
}

Step run_acquire(Warp& warp, const Instruction& in, u32 mask) {
  const auto& address = *static_cast<const AddressRow*>(in.extra);
  AsyncClusterState& state = async_of(cluster_of(warp));
  async_of(warp).order.note_access(mask);
  each_lane(mask, [&](int lane) {
    const u64 map = address.at(warp, lane);
    require_aligned(warp, lane, map);
    if (is_shared_host(warp, map)) fault(warp, lane, "bounds", "the tensor map must be in global memory");
    const u32 version = cluster_of(warp).grid->tensor_maps.version(map).number;
    if (version == 0) return;
    auto& acquired = state.acquired_maps[map];
    std::erase_if(acquired, [&](const AcquiredMap& each) { return each.version != version; });
    const Epoch now{async_of(warp).order.agent(), async_of(warp).order.clock(), u32{1} << lane};
    const auto is_known = [&](const AcquiredMap& each) { return async_of(warp).order.knows(lane, each.when); };
    if (std::none_of(acquired.begin(), acquired.end(), is_known)) acquired.push_back({version, now});
  });
  return Step::next;
}

// ---- decoding ----

void decode_replace(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"replace", "tile", "global_address", "rank", "box_dim", "global_dim", "global_stride",
                 "element_stride", "elemtype", "interleave_layout", "swizzle_mode", "swizzle_atomicity", "fill_mode",
                 "global", "shared::cta", "b1024"});
  const auto rule = std::find_if(std::begin(kFields), std::end(kFields),
                                 [&](const FieldRule& each) { return decoder.has(each.name); });
  if (rule == std::end(kFields) || !decoder.has("tile") || !decoder.has("b1024"))
    decoder.fail("the mode, the field or the size is missing");
  const size_t count = rule->ordinals ? 3 : 2;
  decoder.operands(count, count);
  const Type type = rule->is_64 ? Type::b64 : Type::b32;
  if (decoder.type_at(-1) != type) decoder.fail("the field ", rule->name, " takes .", rule->is_64 ? "b64" : "b32");
  ReplaceForm form;
  form.field = rule->field;
  form.in_shared = decoder.has("shared::cta");
  form.address = decode_address(decoder, text.operands[0], form.in_shared ? Space::shared : Space::global);
  if (rule->ordinals) {
    const i64 ordinal = decoder.immediate(text.operands[1]);
    if (ordinal < 0 || ordinal >= rule->ordinals)
      decoder.fail("the ordinal of ", rule->name, " is 0 to ", rule->ordinals - 1, ", got ", ordinal);
    form.ordinal = static_cast<u32>(ordinal);
  }
  const TextOperand& value = text.operands.back();
  if (rule->constants) {
    const i64 constant = decoder.immediate(value);
    if (constant < 0 || constant >= rule->constants)
      decoder.fail("value ", constant, " of ", rule->name, " is not emulated; known are 0 to ", rule->constants - 1);
  }
  form.value = decoder.read(value, type);
  in.detail = rule->is_64;
  in.extra = decoder.keep(form);
  in.execute = run_replace;
}

void require_map_size(Decoder& decoder, const TextOperand& operand) {
  if (decoder.immediate(operand) != kTensorMapBytes) decoder.fail("the size of a tensor map is 128");
}

void decode_cp_fenceproxy(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"cp_fenceproxy", "global", "shared::cta", "tensormap::generic", "release", "cta", "cluster", "gpu",
                 "sys", "sync", "aligned"});
  decoder.operands(3, 3);
  require_map_size(decoder, text.operands[2]);
  in.extra = decoder.keep(CopyForm{decode_address(decoder, text.operands[0], Space::global),
                                   decode_address(decoder, text.operands[1], Space::shared)});
  in.execute = run_cp_fenceproxy;
}

void decode_fence(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"proxy", "tensormap::generic", "acquire", "release", "cta", "cluster", "gpu", "sys"});
  if (decoder.has("release")) {
    decoder.operands(0, 0);
    in.execute = run_release;
    return;
  }
  if (!decoder.has("acquire")) decoder.fail("the fence is neither .acquire nor .release");
  decoder.operands(2, 2);
  require_map_size(decoder, text.operands[1]);
  in.extra = decoder.keep(decode_address(decoder, text.operands[0], Space::generic));
  in.execute = run_acquire;
}

constexpr Entry kEntries[] = {
    {"tensormap.replace", "9.7.9.28", decode_replace, Class::copy},
    {"tensormap.cp_fenceproxy", "9.7.13.16", decode_cp_fenceproxy, Class::copy},
    {"fence.proxy.tensormap::generic", "9.7.13.4", decode_fence, Class::synchronisation},
};

}  // namespace

std::span<const Entry> tensor_map_entries() { return kEntries; }

}  // namespace glm5::emulator
