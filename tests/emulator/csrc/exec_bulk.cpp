// cp.async.bulk, cp.async.bulk.tensor and cp.reduce.async.bulk: decoding and issue. PTX ISA 9.7.9.25.4 and 9.7.9.27.
#include <algorithm>
#include <cstring>

#include "async_decode.h"
#include "bulk_reduce.h"
#include "report.h"
#include "traffic.h"

namespace glm5::emulator {
namespace {

struct BulkForm {
  bool is_tensor = false, is_load = false, is_multicast = false, from_shared = false;
  int rank = 0;
  AddressRow shared, global,
      barrier;  // global: of a tensor copy, its map. A copy from shared to shared: `global` is the source
  Operand coordinates[kMaxTensorRank], bytes, blocks;
  Reduce reduce = nullptr;
  ReduceOperation operation{};
  bool reduces = false;
};

const BulkForm& form_of(const Instruction& in) { return *static_cast<const BulkForm*>(in.extra); }

TensorMap map_at(Warp& warp, int lane, const BulkForm& form) {
  const u64 address = form.global.at(warp, lane);
  if (address % kTensorMapAlignment)
    fault(warp, lane, "alignment", "a tensor map must be aligned to 64 bytes, got ", Hex{address});
  if (Memory::instance().holds(address)) check_bytes(warp, lane, Access::read, address, sizeof(TensorMap));
  TensorMap map;
  std::memcpy(&map, reinterpret_cast<const void*>(address), sizeof(map));
  if (map.magic != TensorMap::kMagic) fault(warp, lane, "tensor map", "there is no tensor map at ", Hex{address});
  if (map.rank != form.rank) {
    fault(warp, lane, "tensor map", "the instruction has ", form.rank, " coordinates, the tensor map ", int{map.rank});
  }
  require_acquired_map(warp, lane, address, map);
  return map;
}

// Global bytes of the segments, checked in runs.
void check_global(Warp& warp, int lane, Access access, const std::vector<Segment>& segments) {
  for (size_t i = 0; i < segments.size();) {
    u64 bytes = segments[i].bytes;
    size_t j = i + 1;
    while (segments[i].from && j < segments.size() && segments[j].from == segments[i].from + bytes)
      bytes += segments[j++].bytes;
    if (segments[i].from) check_bytes(warp, lane, access, segments[i].from, bytes);
    i = j;
  }
}

// What a bulk copy moves in device memory, in runs.
void count_global(Warp& warp, Path path, const std::vector<Segment>& segments) {
  Traffic* traffic = cluster_of(warp).traffic;
  if (traffic == nullptr) return;
  ++(*traffic)[path].requests;
  for (size_t i = 0; i < segments.size();) {
    u64 bytes = segments[i].bytes;
    size_t j = i + 1;
    while (segments[i].from && j < segments.size() && segments[j].from == segments[i].from + bytes)
      bytes += segments[j++].bytes;
    if (segments[i].from) count_run((*traffic)[path], segments[i].from, bytes);
    i = j;
  }
}

// What one lane copies.
struct BulkCopy {
  std::vector<Segment> segments;
  u32 shared, bytes, fill = 0;
};

BulkCopy copy_of(Warp& warp, int lane, const BulkForm& form) {
  BulkCopy copy;
  const u64 host = form.shared.host(warp, lane, Space::shared);
  copy.shared = shared_address(warp, host);
  const u32 alignment = form.is_tensor ? 128 : 16;
  if (copy.shared % alignment) {
    fault(warp, lane, "alignment", "a bulk copy's shared address must be aligned to ", alignment, " bytes, got ",
          Hex{copy.shared});
  }
  if (form.is_tensor) {
    const TensorMap map = map_at(warp, lane, form);
    i64 coordinates[kMaxTensorRank] = {};
    for (int d = 0; d < form.rank; ++d) coordinates[d] = row<i32>(warp, form.coordinates[d])[lane];
    copy.segments = box_segments(map, coordinates, copy.shared);
    copy.bytes = map.box_bytes();
    if (map.fills_nan) copy.fill = map.element_bytes() == 2 ? 0x7fff7fff : 0x7fffffff;
    return copy;
  }
  copy.bytes = row<u32>(warp, form.bytes)[lane];
  const u64 from = form.from_shared ? form.global.host(warp, lane, Space::shared) : form.global.at(warp, lane);
  if (copy.bytes % 16 || from % 16) {
    fault(warp, lane, "alignment", "a bulk copy of ", copy.bytes, " bytes at ", Hex{from},
          ": both must be multiples of 16");
  }
  copy.segments.push_back({copy.shared, from, copy.bytes});
  return copy;
}

Step run_load(Warp& warp, const Instruction& in, u32 mask) {
  const BulkForm& form = form_of(in);
  Cluster& cluster = cluster_of(warp);
  AsyncClusterState& state = async_of(cluster);
  AsyncWarpState& mine = async_of(warp);
  const u16 agent = state.races.agents().of(AgentKind::copy_in, mine.number);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    BulkCopy copy = copy_of(warp, lane, form);
    check_global(warp, lane, Access::read, copy.segments);
    if (!form.from_shared) count_global(warp, Path::bulk_load, copy.segments);
    PendingCopy pending;
    pending.view = mine.order.done_by(u32{1} << lane);
    const Clocks done = pending.view;
    pending.view.raise(agent, ++mine.copy_in);
    if (form.from_shared) {
      const u32 source = shared_address(warp, copy.segments[0].from);
      const Accessor reader = accessor_by(agent, mine.copy_in, done, static_cast<int>(mine.number));
      check_conflict(warp, lane, state.races.read(source, copy.bytes, reader), "a bulk copy reads");
      state.races.take_writers();
    }
    const u64 barrier = form.barrier.host(warp, lane, Space::shared);
    const u32 home = copy.shared >> kRankShift, home_barrier = shared_address(warp, barrier);
    const u32 blocks = form.is_multicast ? row<u16>(warp, form.blocks)[lane] : u32{1} << home;
    if (blocks == 0 || blocks >> cluster.ctas.size()) {
      fault(warp, lane, "cluster", "the multicast mask ", Hex{blocks}, " names blocks that a cluster of ",
            cluster.ctas.size(), " has not");
    }
    pending.kind = PendingCopy::Kind::load;
    pending.site = site_of(warp, lane);
    pending.bytes = copy.bytes;
    pending.fill = copy.fill;
    pending.segments = std::make_shared<const std::vector<Segment>>(std::move(copy.segments));
    const Accessor who = accessor_by(agent, mine.copy_in, done);
    for (u32 block = 0; block < cluster.ctas.size(); ++block) {
      if (!(blocks >> block & 1)) continue;
      const u64 offset = u64{block} - home, to_offset = form.is_multicast ? offset << kRankShift : 0;
      const u32 address = copy.shared + static_cast<u32>(to_offset);
      const u32 signal =
          form.is_multicast ? (home_barrier & ((1u << kRankShift) - 1)) | block << kRankShift : home_barrier;
      pending.barrier[0] = u64(cluster.shared) + signal;
      if (pending.barrier[0] % 8) fault(warp, lane, "alignment", "an mbarrier must be aligned to 8 bytes");
      require_async_barrier(warp, lane, pending.barrier[0]);
      check_bytes(warp, lane, Access::write, u64(cluster.shared) + address, copy.bytes);
      check_conflict(warp, lane, state.races.write(address, copy.bytes, who), "a bulk copy writes");
      if (cluster.traffic && !form.from_shared) cluster.traffic->delivered += copy.bytes;
      pending.to_offset = to_offset;
      pending.block = address >> kRankShift;
      state.pending.push_back(pending);
    }
  }
  wake(cluster);
  return Step::next;
}

Step run_store(Warp& warp, const Instruction& in, u32 mask) {
  const BulkForm& form = form_of(in);
  Cluster& cluster = cluster_of(warp);
  AsyncClusterState& state = async_of(cluster);
  AsyncWarpState& mine = async_of(warp);
  OwnCopies& copies = mine.order.copies_out;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    BulkCopy copy = copy_of(warp, lane, form);
    check_bytes(warp, lane, Access::read, u64(cluster.shared) + copy.shared, copy.bytes);
    check_global(warp, lane, form.reduces ? Access::atomic : Access::write, copy.segments);
    count_global(warp, Path::bulk_store, copy.segments);
    mine.order.start(copies, u32{1} << lane);
    Accessor reader = accessor_of(warp, lane);
    reader.agent = copies.agent;
    reader.clock = copies.clock;
    reader.proxy_reader = static_cast<int>(mine.number);
    check_conflict(warp, lane, state.races.read(copy.shared, copy.bytes, reader), "a bulk store reads");
    state.races.take_writers();
    PendingCopy pending;
    pending.kind = PendingCopy::Kind::store;
    pending.site = site_of(warp, lane);
    pending.bytes = copy.bytes;
    if (form.is_tensor) pending.tensor_map = form.global.at(warp, lane);
    pending.group[0] = mine.bulk_groups[lane].open;
    if (form.reduces) {
      pending.reduce = form.is_tensor ? reduction_of(form.operation, map_at(warp, lane, form).element) : form.reduce;
      if (pending.reduce == nullptr)
        fault(warp, lane, "tensor map", "this reduction does not exist for the map's type");
    }
    pending.segments = std::make_shared<const std::vector<Segment>>(std::move(copy.segments));
    state.pending.push_back(std::move(pending));
  }
  wake(cluster);
  return Step::next;
}

Step run_commit(Warp& warp, const Instruction&, u32 mask) {
  AsyncWarpState& mine = async_of(warp);
  for (u32 rest = mask; rest; rest &= rest - 1) {
    CopyGroups& groups = mine.bulk_groups[first_lane(rest)];
    ++groups.open;
    groups.clocks.push_back(mine.order.copies_out.clock);
  }
  return Step::next;
}

// detail: how many committed groups may stay under way. offset: 1 where only the reads count.
Step run_wait(Warp& warp, const Instruction& in, u32 mask) {
  AsyncWarpState& mine = async_of(warp);
  AsyncClusterState& state = async_of(cluster_of(warp));
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const int lane = first_lane(rest);
    const CopyGroups& groups = mine.bulk_groups[lane];
    for (const PendingCopy& copy : state.pending) {
      if (copy.kind != PendingCopy::Kind::store || copy.site.warp != &warp || copy.site.lane != lane) continue;
      if (u64{copy.group[0]} + in.detail >= groups.open || (in.offset == 1 && copy.has_read)) continue;
      warp.group->wait = {WaitKind::bulk_group, 0, in.detail, 0};
      return Step::blocked;
    }
    if (groups.open <= in.detail) continue;
    mine.order.wait(mine.order.copies_out, lane, groups.clocks[groups.open - in.detail - 1]);
  }
  warp.group->wait = {};
  return Step::next;
}

Step run_nothing(Warp&, const Instruction&, u32) { return Step::next; }

// ---- decoding ----

void allow_words(Decoder& decoder) {
  decoder.allow({"async",
                 "bulk",
                 "reduce",
                 "tensor",
                 "1d",
                 "2d",
                 "3d",
                 "4d",
                 "5d",
                 "tile",
                 "shared::cluster",
                 "shared::cta",
                 "global",
                 "mbarrier::complete_tx::bytes",
                 "multicast::cluster",
                 "bulk_group",
                 "L2::cache_hint",
                 "add",
                 "min",
                 "max",
                 "inc",
                 "dec",
                 "and",
                 "or",
                 "xor",
                 "noftz"});
}

ReduceOperation operation_of(Decoder& decoder) {
  constexpr std::pair<std::string_view, ReduceOperation> kNames[] = {
      {"add", ReduceOperation::add},  {"min", ReduceOperation::min}, {"max", ReduceOperation::max},
      {"and", ReduceOperation::and_}, {"or", ReduceOperation::or_},  {"xor", ReduceOperation::xor_}};
  for (const auto& [name, operation] : kNames) {
    if (decoder.has(name)) return operation;
  }
  decoder.fail("this reduction is not emulated");
}

// Where the direction is global <- shared, the first space named is the destination.
bool is_store(const TextInstruction& text) {
  for (const auto word : text.words) {
    if (word == "global") return true;
    if (word.starts_with("shared")) return false;
  }
  return false;
}

void decode_bulk(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_words(decoder);
  BulkForm form;
  const auto& operands = text.operands;
  const bool stores = is_store(text);
  form.is_multicast = decoder.has("multicast::cluster");
  form.from_shared = !stores && !decoder.has("global");
  const size_t hint = decoder.has("L2::cache_hint") ? 1 : 0,
               needed = (stores ? 3 : 4) + (form.is_multicast ? 1 : 0) + hint;
  decoder.operands(needed, needed);
  form.shared = decode_address(decoder, operands[stores ? 1 : 0], Space::shared);
  form.global = decode_address(decoder, operands[stores ? 0 : 1], form.from_shared ? Space::shared : Space::global);
  form.bytes = decoder.read(operands[2], Type::u32);
  if (!stores) form.barrier = decode_address(decoder, operands[3], Space::shared);
  if (form.is_multicast) form.blocks = decoder.read(operands[4], Type::u16);
  form.reduces = text.words[1] == "reduce";
  if (form.reduces) {
    form.operation = operation_of(decoder);
    form.reduce = reduction_of(form.operation, tensor_element_of(decoder.type_at(-1)));
    if (!stores || form.reduce == nullptr) decoder.fail("this reduction is not emulated");
  }
  in.extra = decoder.keep(form);
  in.execute = stores ? run_store : run_load;
}

void decode_tensor(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  allow_words(decoder);
  BulkForm form;
  form.is_tensor = true;
  for (int d = 1; d <= kMaxTensorRank; ++d) {
    if (decoder.has(std::string(1, static_cast<char>('0' + d)) + "d")) form.rank = d;
  }
  const auto& operands = text.operands;
  const bool stores = is_store(text);
  form.is_multicast = decoder.has("multicast::cluster");
  const size_t hint = decoder.has("L2::cache_hint") ? 1 : 0,
               needed = (stores ? 2 : 3) + (form.is_multicast ? 1 : 0) + hint;
  decoder.operands(needed, needed);
  const TextOperand& tensor = operands[stores ? 0 : 1];
  form.shared = decode_address(decoder, operands[stores ? 1 : 0], Space::shared);
  form.global = decode_address(decoder, tensor, Space::generic);
  if (tensor.parts.size() != 1 || static_cast<int>(tensor.parts[0].parts.size()) != form.rank) {
    decoder.fail("expected ", form.rank, " coordinates");
  }
  for (int d = 0; d < form.rank; ++d) form.coordinates[d] = decoder.read(tensor.parts[0].parts[d], Type::s32);
  if (!stores) form.barrier = decode_address(decoder, operands[2], Space::shared);
  if (form.is_multicast) form.blocks = decoder.read(operands[3], Type::u16);
  form.reduces = text.words[1] == "reduce";
  if (form.reduces) form.operation = operation_of(decoder);
  in.extra = decoder.keep(form);
  in.execute = stores ? run_store : run_load;
}

void decode_nothing(Decoder&, const TextInstruction&, Instruction& in) { in.execute = run_nothing; }

void decode_commit(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.operands(0, 0);
  in.execute = run_commit;
}

void decode_wait(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"async", "bulk", "wait_group", "read"});
  in.detail = static_cast<u32>(decoder.immediate(text.operands[0]));
  in.offset = decoder.has("read") ? 1 : 0;
  in.execute = run_wait;
}

constexpr Entry kEntries[] = {
    {"cp.async.bulk", "9.7.9.25.4.1", decode_bulk, Class::copy},
    {"cp.reduce.async.bulk", "9.7.9.25.4.2", decode_bulk, Class::copy},
    {"cp.async.bulk.prefetch", "9.7.9.25.4.3", decode_nothing, Class::copy},
    {"cp.async.bulk.tensor", "9.7.9.27.1.1", decode_tensor, Class::copy},
    {"cp.reduce.async.bulk.tensor", "9.7.9.27.1.2", decode_tensor, Class::copy},
    {"cp.async.bulk.prefetch.tensor", "9.7.9.27.1.3", decode_nothing, Class::copy},
    {"cp.async.bulk.commit_group", "9.7.9.25.4.4", decode_commit, Class::copy},
    {"cp.async.bulk.wait_group", "9.7.9.25.4.5", decode_wait, Class::copy},
};

}  // namespace

std::span<const Entry> bulk_entries() { return kEntries; }

}  // namespace glm5::emulator
