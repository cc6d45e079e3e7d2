// wgmma.*: decoding and execution. PTX ISA 9.7.15.
//
// Each warp multiplies its own 16 rows when it issues the instruction; completion belongs to the warpgroup: nobody's
// wait returns before all four warps have issued. Operands in shared memory are hashed at each issue and once more when
// the first warp learns of the completion: they must not have changed in between.
#include <algorithm>

#include "async_decode.h"
#include "report.h"
#include "wgmma_registers.h"

namespace glm5::emulator {

namespace {

const WgmmaForm& form_of(const Instruction& in) { return *static_cast<const WgmmaForm*>(in.extra); }

Warpgroup& warpgroup_of(Warp& warp) { return warp.cta->async->warpgroups[static_cast<size_t>(warp.index / 4)]; }

// One operand, as rows of 32 bytes.
struct Gathered {
  std::vector<u32> addresses;  // of 16-byte chunks, within the block
  std::vector<u8> chunks, rows;
  u64 hash = 0;
};

void gather(const u8* shared, u64 bits, bool mn_major, int first, int row_count, Gathered& out) {
  out.addresses = chunk_addresses(decode_descriptor(bits), mn_major, first, row_count);
  out.chunks.resize(out.addresses.size() * 16);
  for (size_t i = 0; i < out.addresses.size(); ++i) {
    __builtin_memcpy(out.chunks.data() + 16 * i, shared + out.addresses[i], 16);
  }
  out.hash = hash_bytes(out.chunks.data(), out.chunks.size());
}

const u8* block_shared(Warp& warp) { return cluster_of(warp).shared + warp.cta->shared_address; }

// Bounds, initialisation, races and fences of an operand's chunks, on behalf of one warp.
void check_operand(Warp& warp, const char* name, const std::vector<u32>& addresses, u64 bits, u32 clock,
                   const Clocks& done) {
  const MatrixDescriptor descriptor = decode_descriptor(bits);
  if (descriptor.base_offset != 0) {
    fault(warp, -1, "wgmma", "the descriptor of ", name, " has base offset ", descriptor.base_offset,
          ": not emulated (start operands at multiples of the swizzle pattern)");
  }
  AsyncClusterState& state = async_of(cluster_of(warp));
  const AsyncWarpState& mine = async_of(warp);
  const u32 groups_per_block = static_cast<u32>(warp.cta->async->warpgroups.size());
  const u32 group = warp.cta->rank * groups_per_block + static_cast<u32>(warp.index) / 4;
  const Accessor who =
      accessor_by(state.races.agents().of(AgentKind::wgmma, group), clock, done, static_cast<int>(mine.number));
  const u64 host = u64(block_shared(warp));
  for (size_t i = 0; i < addresses.size();) {
    u32 bytes = 16;
    size_t j = i + 1;
    while (j < addresses.size() && addresses[j] == addresses[i] + bytes) bytes += 16, ++j;
    check_bytes(warp, -1, Access::read, host + addresses[i], bytes);
    const Conflict conflict = state.races.read(warp.cta->shared_address + addresses[i], bytes, who);
    if (conflict) check_conflict(warp, -1, conflict, name[0] == 'A' ? "wgmma reads A at" : "wgmma reads B at");
    i = j;
  }
}

// A sibling has had the same chunks checked: this warp must know of their writers too.
void check_writers(Warp& warp, const char* name, const std::vector<Epoch>& writers, const Clocks& done) {
  const Accessor who = accessor_by(0, 0, done);
  for (const Epoch& writer : writers) {
    if (who.knows(writer)) continue;
    fault(warp, -1, "race", "wgmma reads ", name, ", which ", describe_work(cluster_of(warp), writer),
          " wrote, and nothing orders the two for this warp");
  }
}

void require_same(Warp& warp, const char* name, u64 hash, u64 first) {
  if (hash == first) return;
  fault(warp, -1, "operands", "operand ", name,
        " of a wgmma changed while the instruction was under way: another warp "
        "of the warpgroup has issued it with other contents");
}

u64 hash_sums(Warp& warp, const WgmmaForm& form) {
  RowHash hash;
  for (const Operand& sum : form.sums) hash.add(row<u8>(warp, sum));
  return hash.value();
}

// wgmma.fence must stand between other uses of the accumulators and the first wgmma; wgmma that follow one another on
// the same accumulators need none. What cannot be seen here: a register that was only read in between.
void check_fence(Warp& warp, const WgmmaForm& form) {
  WgmmaWarp& mine = async_of(warp).wgmma;
  const auto found = mine.accumulators.find(form.sums[0].offset);
  if (found == mine.accumulators.end()) {
    if (mine.is_fenced) return;
    fault(warp, -1, "wgmma", "the first wgmma on these accumulators needs a wgmma.fence before it");
  }
  if (found->second == hash_sums(warp, form)) return;
  fault(warp, -1, "wgmma", "the accumulators changed since the last wgmma, without a wgmma.fence");
}

WgmmaInFlight& enter(Warp& warp, const WgmmaForm& form, u64 a, u64 b) {
  Warpgroup& group = warpgroup_of(warp);
  const int me = warp.index % 4;
  const u32 number = ++group.issued[me];
  async_of(warp).wgmma.issued = number;
  while (group.first + group.in_flight.size() <= number) group.in_flight.emplace_back();
  WgmmaInFlight& op = group.in_flight[number - group.first];
  if (op.warps == 0) {
    op.form = &form;
    op.a = a;
    op.b = b;
    op.pc = warp.group->pc;
  } else if (op.form != &form || op.b != b || (!form.a_in_registers && op.a != a)) {
    fault(warp, -1, "wgmma", "the warps of a warpgroup issue different wgmma, or with different descriptors: ", Hex{b},
          " and ", Hex{op.b}, " for B");
  }
  return op;
}

void multiply(Warp& warp, const WgmmaForm& form, const u8* a_rows, const f32* b, bool accumulate) {
  alignas(32) f32 a[64 * kWgmmaKBytes];
  pack_a(form.a_element, a_rows, form.negates_a != form.negates_b, a);
  const int k = k_of(form.a_element);
  if (form.is_integer) {
    i32* sums[128];
    for (int i = 0; i < form.n / 2; ++i) sums[i] = row<i32>(warp, form.sums[static_cast<size_t>(i)]);
    multiply_i32(a, b, k, form.n, sums, accumulate, form.saturates);
    return;
  }
  f32* sums[128];
  if (!form.sums_in_f16) {
    for (int i = 0; i < form.n / 2; ++i) sums[i] = row<f32>(warp, form.sums[static_cast<size_t>(i)]);
    multiply_f32(a, b, k, form.n, sums, accumulate);
    return;
  }
  // Two f16 in a register: even and odd columns.
  alignas(32) f32 wide[128][kLanes];
  for (int i = 0; i < form.n / 2; ++i) {
    sums[i] = wide[i];
    const u16* pairs = row<u16>(warp, form.sums[static_cast<size_t>(i / 2)]);
    for (int lane = 0; lane < kLanes; ++lane) wide[i][lane] = f16_to_f32(pairs[2 * lane + i % 2]);
  }
  multiply_f32(a, b, k, form.n, sums, accumulate);
  for (int i = 0; i < form.n / 2; ++i) {
    u16* pairs = row<u16>(warp, form.sums[static_cast<size_t>(i / 2)]);
    for (int lane = 0; lane < kLanes; ++lane) pairs[2 * lane + i % 2] = f32_to_f16(wide[i][lane]);
  }
}

// A in registers: register i of lane l is row l / 4 + 8 (i % 2), 4 bytes of k from 16 (i / 2) + 4 (l % 4) on.
void rows_from_registers(Warp& warp, const WgmmaForm& form, u8* rows) {
  for (int i = 0; i < 4; ++i) {
    const u8* values = row<u8>(warp, form.a_registers[i]);
    for (int lane = 0; lane < kLanes; ++lane) {
      __builtin_memcpy(rows + (lane / 4 + 8 * (i % 2)) * kWgmmaKBytes + 16 * (i / 2) + 4 * (lane % 4),
                       values + 4 * lane, 4);
    }
  }
}

// The instruction is the warpgroup's: nothing says which warp reads which rows of A, so each must know of all writers.
void gather_a(Warp& warp, const WgmmaForm& form, WgmmaInFlight& op, u32 number, const Clocks& done, u8* rows) {
  if (form.a_in_registers) return rows_from_registers(warp, form, rows);
  thread_local Gathered a;
  const int me = warp.index % 4;
  if (op.warps == 0) {
    for (int i = 0; i < 4; ++i) {
      gather(block_shared(warp), op.a, form.a_is_mn_major, 16 * i, 16, a);
      check_operand(warp, "A", a.addresses, op.a, number, done);
      op.a_hash[i] = a.hash;
    }
    op.a_writers = async_of(cluster_of(warp)).races.take_writers();
  } else {
    check_writers(warp, "A", op.a_writers, done);
  }
  gather(block_shared(warp), op.a, form.a_is_mn_major, 16 * me, 16, a);
  require_same(warp, "A", a.hash, op.a_hash[me]);
  rows_from_chunks(a.chunks.data(), form.a_is_mn_major, 16, rows);
}

const f32* gather_b(Warp& warp, const WgmmaForm& form, WgmmaInFlight& op, u32 number, const Clocks& done) {
  thread_local Gathered b;
  gather(block_shared(warp), op.b, form.b_is_mn_major, 0, form.n, b);
  AsyncClusterState& state = async_of(cluster_of(warp));
  if (op.warps == 0) {
    check_operand(warp, "B", b.addresses, op.b, number, done);
    op.b_writers = state.races.take_writers();
    op.b_hash = b.hash;
  } else {
    check_writers(warp, "B", op.b_writers, done);
    require_same(warp, "B", b.hash, op.b_hash);
  }
  b.rows.resize(static_cast<size_t>(form.n) * kWgmmaKBytes);
  rows_from_chunks(b.chunks.data(), form.b_is_mn_major, form.n, b.rows.data());
  return state.operands.find(op.b + (u64{warp.cta->rank} << 20), form.b_element, form.n, b.rows);
}

Step run_multiply(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  const WgmmaForm& form = form_of(in);
  check_fence(warp, form);
  const u64 a = form.a_in_registers ? 0 : row<u64>(warp, form.a)[0], b = row<u64>(warp, form.b)[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    if (row<u64>(warp, form.b)[lane] != b || (!form.a_in_registers && row<u64>(warp, form.a)[lane] != a)) {
      fault(warp, lane, "wgmma", "the lanes of a warp hold different descriptors");
    }
  }
  WgmmaInFlight& op = enter(warp, form, a, b);
  const u32 number = async_of(warp).wgmma.issued;
  note_wgmma_issue(warp, form, number);
  // All lanes take part: what each did before is ordered before it.
  const Clocks& done = op.views[warp.index % 4] = async_of(warp).order.done_by(kAllLanes);
  u8 a_rows[16 * kWgmmaKBytes];
  gather_a(warp, form, op, number, done, a_rows);
  const f32* packed_b = gather_b(warp, form, op, number, done);
  const u32 accumulate = predicate(warp, form.accumulate);
  if (accumulate != 0 && accumulate != kAllLanes)
    fault(warp, -1, "wgmma", "scale-d differs between the lanes of a warp");
  multiply(warp, form, a_rows, packed_b, accumulate != 0);
  op.warps |= u32{1} << warp.index % 4;
  WgmmaWarp& mine = async_of(warp).wgmma;
  mine.accumulators[form.sums[0].offset] = hash_sums(warp, form);
  wake(cluster_of(warp));
  return Step::next;
}

Step run_fence(Warp& warp, const Instruction&, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  WgmmaWarp& mine = async_of(warp).wgmma;
  mine.is_fenced = true;
  mine.accumulators.clear();
  return Step::next;
}

Step run_commit(Warp& warp, const Instruction&, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  WgmmaWarp& mine = async_of(warp).wgmma;
  mine.commits.push_back(mine.issued);
  return Step::next;
}

void check_unchanged(Warp& warp, const WgmmaInFlight& op) {
  thread_local Gathered now;
  const auto complain = [&](const char* name) {
    fault_at({&warp, op.pc, 0}, "operands",
             std::string("operand ") + name +
                 " of this wgmma changed while it was under way: "
                 "its shared memory was written before the wgmma was known to be complete");
  };
  gather(block_shared(warp), op.b, op.form->b_is_mn_major, 0, op.form->n, now);
  if (now.hash != op.b_hash) complain("B");
  for (int i = 0; i < 4 && !op.form->a_in_registers; ++i) {
    gather(block_shared(warp), op.a, op.form->a_is_mn_major, 16 * i, 16, now);
    if (now.hash != op.a_hash[i]) complain("A");
  }
}

// The warp learns that the wgmma up to `target` are complete.
void complete(Warp& warp, u32 target) {
  Warpgroup& group = warpgroup_of(warp);
  for (; group.completed < target; ++group.completed) {
    const WgmmaInFlight& op = group.in_flight.front();
    check_unchanged(warp, op);
    for (const Clocks& view : op.views) group.completed_view.join(view);
    group.in_flight.pop_front();
    ++group.first;
  }
  const u32 index =
      warp.cta->rank * static_cast<u32>(warp.cta->async->warpgroups.size()) + static_cast<u32>(warp.index) / 4;
  Clocks news = group.completed_view;
  news.raise(async_of(cluster_of(warp)).races.agents().of(AgentKind::wgmma, index), target);
  learn(warp, kAllLanes, news);
}

Step run_wait(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  WgmmaWarp& mine = async_of(warp).wgmma;
  warp.group->wait = {};
  if (mine.commits.size() <= in.detail) return Step::next;
  const size_t done = mine.commits.size() - in.detail;
  const u32 target = mine.commits[done - 1];
  const Warpgroup& group = warpgroup_of(warp);
  for (const u32 issued : group.issued) {
    if (issued >= target) continue;
    warp.group->wait = {WaitKind::wgmma, 0, in.detail, 0};
    return Step::blocked;
  }
  complete(warp, target);
  note_wgmma_wait(warp, target);
  if (in.detail == 0) {  // the accumulators are the warp's again
    mine.is_fenced = false;
    mine.accumulators.clear();
  }
  mine.commits.erase(mine.commits.begin(), mine.commits.begin() + static_cast<long>(done));
  return Step::next;
}

// ---- decoding ----

MatrixElement element_named(Decoder& decoder, std::string_view word) {
  constexpr std::pair<std::string_view, MatrixElement> kNames[] = {
      {"f16", MatrixElement::f16},   {"bf16", MatrixElement::bf16}, {"tf32", MatrixElement::tf32},
      {"e4m3", MatrixElement::e4m3}, {"e5m2", MatrixElement::e5m2}, {"s8", MatrixElement::s8},
      {"u8", MatrixElement::u8_}};
  for (const auto& [name, element] : kNames) {
    if (name == word) return element;
  }
  decoder.fail("wgmma on .", word, " is not emulated");
}

// m64nNkK.type of D.type of A.type of B
void decode_types(Decoder& decoder, const TextInstruction& text, WgmmaForm& form) {
  size_t at = 0;
  while (at < text.words.size() && !text.words[at].starts_with("m64n")) ++at;
  if (at + 3 >= text.words.size()) decoder.fail("a shape or type is missing");
  for (const char digit : text.words[at].substr(4)) {
    if (digit < '0' || digit > '9') break;
    form.n = form.n * 10 + (digit - '0');
  }
  if (form.n < 8 || form.n > 256 || form.n % 8) decoder.fail("n must be a multiple of 8 up to 256, got ", form.n);
  const auto sum = text.words[at + 1];
  form.a_element = element_named(decoder, text.words[at + 2]);
  form.b_element = element_named(decoder, text.words[at + 3]);
  form.is_integer = is_integer(form.a_element);
  form.sums_in_f16 = sum == "f16";
  if (form.is_integer ? sum != "s32" : sum != "f32" && sum != "f16")
    decoder.fail("accumulators of type .", sum, " do not exist");
  const std::string shape = "k" + std::to_string(k_of(form.a_element));
  if (!text.words[at].ends_with(shape)) decoder.fail("this type takes .", shape);
}

void decode_multiply(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  if (decoder.has("sp")) decoder.fail("sparse wgmma is not emulated");
  const auto& operands = text.operands;
  decoder.operands(4, 8);
  WgmmaForm form;
  decode_types(decoder, text, form);
  form.saturates = decoder.has("satfinite");
  const Type sum = form.is_integer ? Type::s32 : form.sums_in_f16 ? Type::b32 : Type::f32;
  const size_t needed = static_cast<size_t>(form.n) / (form.sums_in_f16 ? 4 : 2);
  if (operands[0].parts.size() != needed)
    decoder.fail("expected ", needed, " accumulators, got ", operands[0].parts.size());
  for (const TextOperand& part : operands[0].parts) form.sums.push_back(decoder.write(part, sum));
  form.a_in_registers = operands[1].kind == TextOperand::Kind::vector;
  if (form.a_in_registers) {
    if (operands[1].parts.size() != 4) decoder.fail("A in registers takes 4 of them");
    for (int i = 0; i < 4; ++i)
      form.a_registers[i] = decoder.read(operands[1].parts[static_cast<size_t>(i)], Type::b32);
  } else {
    form.a = decoder.read(operands[1], Type::b64);
  }
  form.b = decoder.read(operands[2], Type::b64);
  form.accumulate = decoder.read(operands[3], Type::pred);
  size_t at = 4;
  if (!form.is_integer) {
    decoder.operands(6, 8);
    form.negates_a = decoder.immediate(operands[at++]) == -1;
    form.negates_b = decoder.immediate(operands[at++]) == -1;
  }
  const bool has_transpose = element_bytes(form.a_element) == 2;
  if (has_transpose && !form.a_in_registers) form.a_is_mn_major = decoder.immediate(operands.at(at++)) != 0;
  if (has_transpose) form.b_is_mn_major = decoder.immediate(operands.at(at++)) != 0;
  if (at != operands.size()) decoder.fail("expected ", at, " operands, got ", operands.size());
  in.extra = decoder.keep(std::move(form));
  in.execute = run_multiply;
}

void decode_fence(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.operands(0, 0);
  in.execute = run_fence;
}

void decode_commit(Decoder& decoder, const TextInstruction&, Instruction& in) {
  decoder.operands(0, 0);
  in.execute = run_commit;
}

void decode_wait(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(1, 1);
  in.detail = static_cast<u32>(decoder.immediate(text.operands[0]));
  in.execute = run_wait;
}

constexpr Entry kEntries[] = {
    {"wgmma.mma_async", "9.7.15.5.2", decode_multiply, Class::matrix},
    {"wgmma.fence", "9.7.15.7.1", decode_fence, Class::synchronisation},
    {"wgmma.commit_group", "9.7.15.7.2", decode_commit, Class::synchronisation},
    {"wgmma.wait_group", "9.7.15.7.3", decode_wait, Class::synchronisation},
};

}  // namespace

std::span<const Entry> wgmma_entries() { return kEntries; }

const WgmmaForm* wgmma_form_of(const Instruction& in) { return in.execute == run_multiply ? &form_of(in) : nullptr; }

}  // namespace glm5::emulator
