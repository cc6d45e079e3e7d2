// ldmatrix, stmatrix, movmatrix and mma.sync: decoding and execution. PTX ISA 9.7.14.
#include <array>
#include <cstring>

#include "access.h"
#include "async_decode.h"
#include "report.h"

namespace glm5::emulator {
namespace {

struct MatrixForm {
  int matrices = 0;
  bool is_transposed = false;
  AddressRow address;
  Space space = Space::shared;
  Operand registers[4];
};

// The 16-byte rows: row i of matrix j is at the address of lane 8 j + i. Row r goes to, or comes from, lanes 4 r to
// 4 r + 3; transposed it is column r of the registers: lanes r / 2, r / 2 + 4, ...
struct RowAddresses {
  u64 hosts[kLanes];
  u32 lanes;
};
constexpr auto kLanesOfRows = [] {
  std::array<std::array<u32, kLanes>, 2> sets{};
  for (u32 lane = 0; lane < kLanes; ++lane) {
    sets[0][lane] = 0xfu << lane % 8 * 4;
    sets[1][lane] = 0x11111111u << lane % 8 / 2;
  }
  return sets;
}();

RowAddresses row_addresses(Warp& warp, const Instruction& in, const MatrixForm& form, Access access) {
  RowAddresses rows;
  rows.lanes = form.matrices == 4 ? kAllLanes : (u32{1} << 8 * form.matrices) - 1;
  for (int lane = 0; lane < kLanes; ++lane) rows.hosts[lane] = form.address.host(warp, lane, form.space);
  check_access(warp, in, access, rows.hosts, rows.lanes, 16, 16, kLanesOfRows[form.is_transposed].data());
  return rows;
}

Step run_ldmatrix(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  const MatrixForm& form = *static_cast<const MatrixForm*>(in.extra);
  const RowAddresses rows = row_addresses(warp, in, form, Access::read);
  u16 values[4][8][8];
  for (int i = 0; i < 8 * form.matrices; ++i)
    std::memcpy(values[i / 8][i % 8], reinterpret_cast<const u8*>(rows.hosts[i]), 16);
  for (int j = 0; j < form.matrices; ++j) {
    u32* to = row<u32>(warp, form.registers[j]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const u32 first = form.is_transposed ? values[j][c][r] : values[j][r][c];
      const u32 second = form.is_transposed ? values[j][c + 1][r] : values[j][r][c + 1];
      to[lane] = first | second << 16;
    }
  }
  return Step::next;
}

Step run_stmatrix(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  const MatrixForm& form = *static_cast<const MatrixForm*>(in.extra);
  const RowAddresses rows = row_addresses(warp, in, form, Access::write);
  for (int j = 0; j < form.matrices; ++j) {
    const u32* from = row<u32>(warp, form.registers[j]);
    u16 values[8][8];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int r = lane / 4, c = lane % 4 * 2;
      const u16 first = static_cast<u16>(from[lane]), second = static_cast<u16>(from[lane] >> 16);
      (form.is_transposed ? values[c][r] : values[r][c]) = first;
      (form.is_transposed ? values[c + 1][r] : values[r][c + 1]) = second;
    }
    for (int i = 0; i < 8; ++i) std::memcpy(reinterpret_cast<u8*>(rows.hosts[8 * j + i]), values[i], 16);
  }
  return Step::next;
}

Step run_movmatrix(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  u16 values[8][8];
  std::memcpy(values, row<u32>(warp, in.a), sizeof(values));
  u32* to = row<u32>(warp, in.d);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int r = lane / 4, c = lane % 4 * 2;
    to[lane] = u32{values[c][r]} | u32{values[c + 1][r]} << 16;
  }
  return Step::next;
}

// ---- mma.sync m16n8: A's fragments as wgmma's A in registers, over `k_bytes` of k; B alike with 8 rows ----

struct MmaForm {
  MatrixElement a_element, b_element;
  int k = 0, k_bytes = 0;  // 16 or 32
  bool sums_in_f16 = false, c_in_f16 = false, is_integer = false, saturates = false;
  Operand a[4], b[2], c[4], d[4];
};

// Register i of lane l: A: row l / 4 + 8 (i % 2), bytes 16 (i / 2) + 4 (l % 4); B: row l / 4, bytes 16 i + 4 (l % 4).
void gather_fragments(Warp& warp, const MmaForm& form, u8 (*a)[kWgmmaKBytes], u8 (*b)[kWgmmaKBytes]) {
  const int chunks = form.k_bytes / 16;
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 2 * chunks; ++i) {
      std::memcpy(&a[lane / 4 + 8 * (i % 2)][16 * (i / 2) + 4 * (lane % 4)], row<u32>(warp, form.a[i]) + lane, 4);
    }
    for (int i = 0; i < chunks; ++i) {
      std::memcpy(&b[lane / 4][16 * i + 4 * (lane % 4)], row<u32>(warp, form.b[i]) + lane, 4);
    }
  }
}

void load_sums(Warp& warp, const MmaForm& form, f32 (*sums)[kLanes]) {
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      sums[i][lane] =
          form.c_in_f16 ? f16_to_f32(row<u16>(warp, form.c[i / 2])[2 * lane + i % 2]) : row<f32>(warp, form.c[i])[lane];
    }
  }
}

void store_sums(Warp& warp, const MmaForm& form, const f32 (*sums)[kLanes]) {
  for (int i = 0; i < 4; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (form.sums_in_f16) {
        row<u16>(warp, form.d[i / 2])[2 * lane + i % 2] = f32_to_f16(sums[i][lane]);
      } else {
        row<f32>(warp, form.d[i])[lane] = sums[i][lane];
      }
    }
  }
}

Step run_mma(Warp& warp, const Instruction& in, u32 mask) {
  if (must_converge_aligned(warp, mask)) return Step::blocked;
  const MmaForm& form = *static_cast<const MmaForm*>(in.extra);
  u8 a_rows[16][kWgmmaKBytes] = {}, b_rows[8][kWgmmaKBytes] = {};
  gather_fragments(warp, form, a_rows, b_rows);
  alignas(32) f32 a[64 * kWgmmaKBytes];
  pack_a(form.a_element, &a_rows[0][0], false, a);
  thread_local std::vector<f32> b;
  pack_b(form.b_element, 8, &b_rows[0][0], b);
  alignas(32) f32 sums[4][kLanes];
  f32* rows[4] = {sums[0], sums[1], sums[2], sums[3]};
  if (form.is_integer) {
    i32 wide[4][kLanes];
    i32* wide_rows[4] = {wide[0], wide[1], wide[2], wide[3]};
    for (int i = 0; i < 4; ++i) std::memcpy(wide[i], row<i32>(warp, form.c[i]), sizeof(wide[i]));
    multiply_i32(a, b.data(), k_of(form.a_element), 8, wide_rows, true, form.saturates);
    for (int i = 0; i < 4; ++i) std::memcpy(row<i32>(warp, form.d[i]), wide[i], sizeof(wide[i]));
    return Step::next;
  }
  load_sums(warp, form, sums);
  multiply_f32(a, b.data(), k_of(form.a_element), 8, rows, true);
  store_sums(warp, form, sums);
  return Step::next;
}

// ---- decoding ----

int count_of(Decoder& decoder) { return decoder.has("x4") ? 4 : decoder.has("x2") ? 2 : 1; }

void decode_matrix(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
  if (decoder.type_at(-1) != Type::b16) decoder.fail("only .b16 matrices are emulated");
  decoder.operands(2, 2);
  const bool loads = text.words[0] == "ldmatrix";
  MatrixForm form;
  form.matrices = count_of(decoder);
  form.is_transposed = decoder.has("trans");
  form.space = decoder.has("shared") || decoder.has("shared::cta") ? Space::shared : Space::generic;
  const TextOperand& vector = text.operands[loads ? 0 : 1];
  const auto parts = vector.kind == TextOperand::Kind::vector ? vector.parts : std::vector<TextOperand>{vector};
  if (static_cast<int>(parts.size()) != form.matrices) decoder.fail("expected ", form.matrices, " registers");
  for (int i = 0; i < form.matrices; ++i) {
    const TextOperand& part = parts[static_cast<size_t>(i)];
    form.registers[i] = loads ? decoder.write(part, Type::b32) : decoder.read(part, Type::b32);
  }
  form.address = decode_address(decoder, text.operands[loads ? 1 : 0], form.space);
  in.space = form.space;
  in.extra = decoder.keep(form);
  in.execute = loads ? run_ldmatrix : run_stmatrix;
}

void decode_movmatrix(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.allow({"sync", "aligned", "m8n8", "trans"});
  decoder.operands(2, 2);
  in.d = decoder.write(text.operands[0], Type::b32);
  in.a = decoder.read(text.operands[1], Type::b32);
  in.execute = run_movmatrix;
}

MatrixElement element_named(Decoder& decoder, std::string_view word) {
  if (word == "f16") return MatrixElement::f16;
  if (word == "bf16") return MatrixElement::bf16;
  if (word == "tf32") return MatrixElement::tf32;
  if (word == "e4m3") return MatrixElement::e4m3;
  if (word == "e5m2") return MatrixElement::e5m2;
  if (word == "s8") return MatrixElement::s8;
  if (word == "u8") return MatrixElement::u8_;
  decoder.fail("mma on .", word, " is not emulated");
}

template <size_t kMost>
size_t decode_fragment(Decoder& decoder, const TextOperand& operand, Type type, bool writes, Operand (&out)[kMost]) {
  const auto parts = operand.kind == TextOperand::Kind::vector ? operand.parts : std::vector<TextOperand>{operand};
  if (parts.size() > kMost) decoder.fail("a fragment has too many registers");
  for (size_t i = 0; i < parts.size(); ++i)
    out[i] = writes ? decoder.write(parts[i], type) : decoder.read(parts[i], type);
  return parts.size();
}

// mma.sync.aligned.m16n8kK.row.col(.satfinite).D.A.B.C
void decode_mma(Decoder& decoder, const TextInstruction& text, Instruction& in) {
  decoder.operands(4, 4);
  size_t shape = 0;
  while (shape < text.words.size() && !text.words[shape].starts_with("m16n8k")) ++shape;
  if (shape == text.words.size() || !decoder.has("row") || !decoder.has("col"))
    decoder.fail("only m16n8, row by column, is emulated");
  const size_t count = text.words.size();
  MmaForm form;
  for (const char digit : text.words[shape].substr(6)) form.k = form.k * 10 + (digit - '0');
  form.a_element = element_named(decoder, text.words[count - 3]);
  form.b_element = element_named(decoder, text.words[count - 2]);
  form.k_bytes = form.k * element_bytes(form.a_element);
  if (form.k_bytes != 16 && form.k_bytes != 32) decoder.fail("k = ", form.k, " does not exist for this type");
  form.is_integer = is_integer(form.a_element);
  form.saturates = decoder.has("satfinite");
  form.sums_in_f16 = text.words[count - 4] == "f16";
  form.c_in_f16 = text.words[count - 1] == "f16";
  const Type f32_or_s32 = form.is_integer ? Type::s32 : Type::f32;
  const size_t chunks = static_cast<size_t>(form.k_bytes / 16);
  const size_t d = decode_fragment(decoder, text.operands[0], form.sums_in_f16 ? Type::b32 : f32_or_s32, true, form.d);
  const size_t a = decode_fragment(decoder, text.operands[1], Type::b32, false, form.a);
  const size_t b = decode_fragment(decoder, text.operands[2], Type::b32, false, form.b);
  const size_t c = decode_fragment(decoder, text.operands[3], form.c_in_f16 ? Type::b32 : f32_or_s32, false, form.c);
  if (a != 2 * chunks || b != chunks || d != (form.sums_in_f16 ? 2 : 4) || c != (form.c_in_f16 ? 2 : 4)) {
    decoder.fail("a fragment has the wrong number of registers");
  }
  in.extra = decoder.keep(form);
  in.execute = run_mma;
}

constexpr Entry kEntries[] = {
    {"ldmatrix", "9.7.14.5.15", decode_matrix, Class::matrix},
    {"stmatrix", "9.7.14.5.16", decode_matrix, Class::matrix},
    {"movmatrix", "9.7.14.5.17", decode_movmatrix, Class::matrix},
    {"mma", "9.7.14.5.14", decode_mma, Class::matrix},
};

}  // namespace

std::span<const Entry> matrix_entries() { return kEntries; }

}  // namespace glm5::emulator
