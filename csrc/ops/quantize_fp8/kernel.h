// quantize_fp8 on vectors (cpu/vector.h), 128 values of a group at a time: ragged groups go through a copy padded with
// zeros, which change neither the largest magnitude nor another value, and columns through a transposed copy.
//
// bf16, by table. Moving x by a power of two moves its code by whole binades of eight codes, so all codes follow from
// those of one binade of x: 128 mantissas, which take at most nine codes in ascending order. Scales are largest
// magnitudes / 448, or powers of two, so there are 128 such rows of codes. Steps up are at least eight mantissas apart.
// So among eight neighbours at most one step up happens, and (the sum of their codes + the place of one among them) / 8
// is the code of that one, whatever the reason for which the formula steps there. A byte shuffle finds the sum among
// 16. Below the normal numbers of e4m3 binades have fewer codes: groups with a code of 1 .. 7 in them, one in a hundred
// where x is normally distributed, are done by division.
//
// What it costs. 32 values take 4 vector instructions for the largest magnitude and 23 for the codes; by division, 51.
// Zen 3 (measured) so needs 4 to 5 ns for 32 values in its caches, and about 7 with all in memory, where a copy of as
// many bytes takes 5: arithmetic and memory overlap in part.
//
// By division. y = x * r, r = 1 / scale, and then y + (x - y * scale) * r with two fused multiply-adds is the rounded
// quotient itself (Markstein) where r is rounded to nearest and y lies within a step of the quotient. y does wherever
// it matters: near a boundary m between two e4m3, whose significand is at most 31/16, x * r is less than 31/32 of a
// step off. The rounding to e4m3 is one float addition: |q| + 2^(e + 20), where e is the exponent of |q| or -6 if that
// is greater, has its last bit at 2^(e - 3), which is the step of e4m3 there, subnormal numbers included. So the sum's
// low bits hold the count of steps, rounded to nearest even, and the code is that count + 8 (e + 6).
//
// Plainly. Below scales of 2^-90 the remainder could be subnormal and inexact; such groups, and those with infinities
// and NaN, are rare and take the formula as it stands.
//
// The namespace is unnamed: every object has its own functions, for its own instructions.
#pragma once

#include "cpu/vector.h"
#include "ops/quantize_fp8/areas.h"

namespace glm5::quantize {
namespace {

// How far ahead of the values in work memory is read: 4 KiB (bf16), or the area to the right. Without it rows take 40 %
// longer with x in memory (measured on Zen 3).
constexpr i64 kRowAhead = 2048, kRowStep = 1024, kBlockAhead = kTiling.block_width;
constexpr i64 kColumns = kTiling.column_width;

// ---- The table ----

constexpr u32 kTables = 128;       // by the mantissa of the largest magnitude; that of 448: powers of two
constexpr u32 kBinadesBelow = 11;  // the scale: numbers of lower exponents have the code 0

struct alignas(32) Table {
  u8 sums[16];  // twice (the sum of eight neighbours' codes - first code), less 16 * place
  u8 bias[16];  // of the codes that come of it, 16 times the same
};
struct Tables {
  Table by_mantissa[kTables];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (u32 t = 0; t < kTables; ++t) {
    const f32 scale = fp8_scale(f32_of_bits(0x3f800000 | t << 16), kE4m3Max * 0x1p-20f, false);
    const f32 in_first_binade = f32_of_bits((bits_of(scale) & 0x7fffff) | 0x3f800000);  // 1 <= it < 2
    const u32 first = to_e4m3(1 / in_first_binade).bits;
    for (u32 place = 0; place < 16; ++place) {
      tables.by_mantissa[t].bias[place] = static_cast<u8>(8 * kBinadesBelow - first);
      u32 sum = 0;
      for (u32 m = 8 * place; m < 8 * place + 8; ++m)
        sum += to_e4m3(f32_of_bits(0x3f800000 | m << 16) / in_first_binade).bits - first;
      tables.by_mantissa[t].sums[place] = static_cast<u8>(2 * sum - 16 * place);
    }
  }
  return tables;
}
constexpr Tables kTable = make_tables();
alignas(16) constexpr u8 kEvenThenOdd[16] = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15};

// What will be read soon: it is prefetched line by line with the values in work, as many bytes of it for every group.
template <class T>
struct Next {
  const T* x;
  i64 step;  // from what is prefetched with one group to what is with the next

  GLM5_INLINE void prefetch(i64 first, i64 count) const {
    for (i64 i = first; i < first + count; i += 64 / sizeof(T)) __builtin_prefetch(x + i);
  }
};

template <class Vector>
GLM5_INLINE void store(e4m3* values, typename Vector::u8s codes, bool past_caches) {
  if (past_caches)
    Vector::stream(values, codes);
  else
    Vector::store(values, codes);
}

// The codes of 128 values, unless one of them is 1 .. 7: then nothing is written, and the answer is false. `base` is
// the exponent kBinadesBelow that of the scale, in the upper bytes of two words.
template <class Vector>
GLM5_INLINE bool quantize_by_table(const bf16* x, const Table& table, u32 base, e4m3* values, bool past_caches,
                                   const Next<bf16>& next) {
  using u8s = typename Vector::u8s;
  using u16s = typename Vector::u16s;
  const u8s sums = Vector::repeat_16(table.sums), bias = Vector::repeat_16(table.bias);
  const u8s apart = Vector::repeat_16(kEvenThenOdd);
  const u16s bases = (u16s)(typename Vector::u32s{} + base);
  u8s smallest = ~u8s{}, codes[kFp8Group / Vector::kBytes];
#pragma GCC unroll 4
  for (i64 i = 0; i < kFp8Group; i += Vector::kBytes) {
    next.prefetch(i, Vector::kBytes);
    const u16s left = (u16s)Vector::load(x + i), right = (u16s)Vector::load(x + i + Vector::kBytes / 2);
    // Doubling drops the sign and leaves the exponent in the upper byte, the mantissa in the lower.
    const u8s left_bytes = Vector::choose((u8s)Vector::reduce(left + left, bases), apart);
    const u8s right_bytes = Vector::choose((u8s)Vector::reduce(right + right, bases), apart);
    const u8s mantissas = Vector::template interleave_low<8>(left_bytes, right_bytes);
    const u8s binades = Vector::template interleave_high<8>(left_bytes, right_bytes);
    const u8s place = (u8s)((u16s)mantissas >> 4) & 15;
    const u8s steps = (u8s)((u16s)(Vector::choose(sums, place) + mantissas) >> 4) & 15;
    const u8s biased = (u8s)((u16s)binades << 3) + steps;
    smallest = cpu::smaller_of(smallest, biased - 1);  // 0 becomes 255
    const u8s signs = Vector::pack_signs(left, right) & 0x80;
    codes[i / Vector::kBytes] = Vector::low_halves_first(Vector::reduce(biased, bias) | signs);
  }
  if (Vector::any(Vector::reduce(bias + 7, smallest))) return false;
#pragma GCC unroll 4
  for (i64 i = 0; i < kFp8Group; i += Vector::kBytes) store<Vector>(values + i, codes[i / Vector::kBytes], past_caches);
  return true;
}

// ---- By division ----

// magnitude / scale as a code in the low 16 bits of each number; what stands above is of no meaning.
template <class Vector>
GLM5_INLINE typename Vector::u32s divide(typename Vector::u32s magnitude, typename Vector::f32s scale,
                                         typename Vector::f32s reciprocal) {
  using u32s = typename Vector::u32s;
  using f32s = typename Vector::f32s;
  const f32s estimate = (f32s)magnitude * reciprocal;
  const f32s remainder = Vector::negate_multiply_add(estimate, scale, (f32s)magnitude);
  const f32s quotient = Vector::multiply_add(remainder, reciprocal, estimate);
  const u32s exponent = cpu::larger_of((u32s)quotient & 0x7f800000, u32s{} + (121u << 23));
  // adder >> 20 is 8 (e + 147) = 8 (e + 6) + 1128; the low bits of the adder complete that to 65536, and being even do
  // not touch the rounding.
  const u32s adder = exponent + ((20u << 23) + 65536 - 1128);
  return (u32s)(quotient + (f32s)adder) + (adder >> 20);
}

template <class Vector, class T>
void quantize_by_division(const T* x, f32 scale, f32 reciprocal, e4m3* values, bool past_caches, const Next<T>& next) {
  using u32s = typename Vector::u32s;
  const auto scales = typename Vector::f32s{} + scale, reciprocals = typename Vector::f32s{} + reciprocal;
  for (i64 i = 0; i < kFp8Group; i += Vector::kBytes) {
    next.prefetch(i, Vector::kBytes);
    u32s bits[4], codes[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      bits[j] = (u32s)Vector::load_f32(x + i + j * Vector::kFloats);
      codes[j] = divide<Vector>(bits[j] & 0x7fffffff, scales, reciprocals);
    }
    store<Vector>(values + i, Vector::join(codes, bits), past_caches);
  }
}

// ---- The largest magnitudes ----

// Of vectors of T, as integers of its own size: the largest number, and the largest one with a sign bit if there is
// one. Of both, doubling drops the sign.
template <class Vector, class T>
struct Maxima {
  using Unsigned = typename Vector::template Ints<T>::Unsigned;
  using Signed = typename Vector::template Ints<T>::Signed;
  Unsigned all;
  Signed positive;

  GLM5_INLINE const Maxima& take_128(const T* x) {
    Unsigned most = all;
    Signed most_positive = positive;
#pragma GCC unroll 16
    for (i64 i = 0; i < kFp8Group; i += Vector::kBytes / static_cast<i64>(sizeof(T))) {
      const auto bits = Vector::load(x + i);
      most = cpu::larger_of(most, (Unsigned)bits);
      most_positive = cpu::larger_of(most_positive, (Signed)bits);
    }
    all = most;
    positive = most_positive;
    return *this;
  }
  GLM5_INLINE Unsigned doubled() const {
    const auto of_sign_zero = (Unsigned)positive;
    return cpu::larger_of(all + all, of_sign_zero + of_sign_zero);
  }
};

// As many groups as a lane has numbers of T are worked on together.
template <class T>
constexpr i64 kGroups = 16 / sizeof(T);

// The largest magnitude of each of them, from vectors of doubled ones; what is not finite in T is not finite here. The
// numbers of the result beyond them are of no meaning.
template <class Vector, class T, i64 kCount = kGroups<T>, class Doubled>
GLM5_INLINE typename Vector::f32s amax_of(const Doubled* doubled) {
  constexpr int kSize = kGroups<T> / kCount * sizeof(T);
  if constexpr (kCount > 1) {
    Doubled larger[kCount / 2];
#pragma GCC unroll 4
    for (i64 i = 0; i < kCount / 2; ++i) {
      const auto left = (typename Vector::u8s)doubled[2 * i], right = (typename Vector::u8s)doubled[2 * i + 1];
      larger[i] = cpu::larger_of((Doubled)Vector::template interleave_low<kSize>(left, right),
                                 (Doubled)Vector::template interleave_high<kSize>(left, right));
    }
    return amax_of<Vector, T, kCount / 2>(larger);
  } else {
    Doubled all = doubled[0];
    for (i64 lanes = 1; lanes < Vector::kBytes / 16; lanes *= 2)
      all = cpu::larger_of(all, (Doubled)Vector::rotate_lanes((typename Vector::u8s)all, lanes));
    alignas(64) T magnitudes[Vector::kBytes / sizeof(T)];
    Vector::store(magnitudes, (typename Vector::u8s)(all >> 1));
    return Vector::load_f32(magnitudes);
  }
}

// Rare: the largest finite magnitude of a few values, going on from amax.
template <class Vector, class T>
[[gnu::noinline]] f32 finite_amax(const T* x, i64 count, f32 amax) {
  for (i64 i = 0; i < count; ++i) {
    const f32 magnitude = f32_of_bits(bits_of(Vector::scalar_f32(x[i])) & 0x7fffffff);
    if (is_finite(magnitude) && magnitude > amax) amax = magnitude;
  }
  return amax;
}

// ---- Groups side by side ----

template <class T>
GLM5_INLINE void copy(const T* from, i64 count, T* to) {
  __builtin_memcpy(to, from, count * sizeof(T));
}

// At most 128 values, read as 128: in place, or copied and padded.
template <class T>
struct Padded {
  alignas(64) T values[kFp8Group];
  GLM5_INLINE const T* fill(const T* x, i64 count) {
    if (count >= kFp8Group) return x;
    __builtin_memset(values, 0, sizeof(values));
    copy(x, count, values);
    return values;
  }
};

// What is known of groups side by side before their values are made. Their scales are divided together, so that no
// group waits for its own.
template <class Vector>
struct Groups {
  using f32s = typename Vector::f32s;
  using u32s = typename Vector::u32s;

  alignas(64) f32 scale[Vector::kFloats];
  alignas(64) f32 reciprocal[Vector::kFloats];
  alignas(64) u32 table[Vector::kFloats];
  alignas(64) u32 base[Vector::kFloats];
  u32 plain;      // a bit for every group that only the formula itself is right for
  bool by_table;  // right for all of them, in bf16

  // From the largest finite magnitudes, and a bit for every group with others.
  GLM5_INLINE Groups(const QuantizeFp8Args& args, f32s amax, u32 not_finite) : plain(not_finite) {
    constexpr f32 kSmallestScale = 0x1p-90f;  // from here on a quotient's remainder is exact
    const f32s floored = cpu::larger_of(amax, f32s{} + args.amax_floor);
    u32s scales = (u32s)(floored / kE4m3Max);
    if (args.power_of_two) scales = (scales + 0x7fffff) & 0xff800000u;
    put(scale, scales);
    put(reciprocal, (u32s)(1.0f / (f32s)scales));
    put(table, (args.power_of_two ? u32s{} + bits_of(kE4m3Max) : (u32s)amax) >> 16 & (kTables - 1));
    const u32s exponent = (scales >> 23) - kBinadesBelow;
    put(base, exponent << 8 | exponent << 24);
    const u32s tiny = (u32s)((f32s)scales < kSmallestScale);
    // Where all is zero, any table will do.
    const u32s no_table = args.power_of_two ? u32s{} : (u32s)(amax < floored) & (u32s)(amax != 0);
    by_table = plain == 0 && !Vector::any((typename Vector::u8s)(tiny | no_table));
    if (Vector::any((typename Vector::u8s)tiny))
      for (i64 g = 0; g < Vector::kFloats; ++g) plain |= u32{scale[g] < kSmallestScale} << g;
  }

 private:
  GLM5_INLINE static void put(void* to, u32s x) { Vector::store(to, (typename Vector::u8s)x); }
};

// A bit for each of the first `count` numbers that is not finite.
template <class Vector>
GLM5_INLINE u32 not_finite_of(typename Vector::f32s amax, i64 count) {
  const auto bits = (typename Vector::u32s)amax;
  u32 found = 0;
  if (Vector::any((typename Vector::u8s)(bits >= 0x7f800000)))
    for (i64 g = 0; g < count; ++g) found |= u32{bits[g] >= 0x7f800000} << g;
  return found;
}

// Where groups lie, at steps of x and of values.
template <class T>
struct Place {
  const T* x;
  i64 x_step;
  e4m3* values;
  i64 values_step;
  Next<T> next;
  bool past_caches;

  GLM5_INLINE Place at_group(i64 g) const {
    const Next<T> next_of_group{next.x + g * next.step, next.step};
    return {x + g * x_step, x_step, values + g * values_step, values_step, next_of_group, past_caches};
  }
};

// A group that is no case for the table.
template <class Vector, class T>
[[gnu::noinline]] void quantize_apart(const Place<T>& place, i64 count, const Groups<Vector>& groups, i64 g) {
  const f32 scale = groups.scale[g], reciprocal = groups.reciprocal[g];
  if (groups.plain >> g & 1) {
    for (i64 i = 0; i < count; ++i) place.values[i] = to_e4m3(Vector::scalar_f32(place.x[i]) / scale);
  } else if (count >= kFp8Group) {
    quantize_by_division<Vector>(place.x, scale, reciprocal, place.values, place.past_caches, place.next);
  } else {
    Padded<T> padded;
    alignas(64) e4m3 all[kFp8Group];
    quantize_by_division<Vector>(padded.fill(place.x, count), scale, reciprocal, all, false, place.next);
    copy(all, count, place.values);
  }
}

// A row of at most all these groups.
template <class Vector, class T>
GLM5_INLINE void quantize_row(const Place<T>& row, i64 count, const Groups<Vector>& groups) {
  u32 left = (u32{1} << ceil_div(count, kFp8Group)) - 1;
  if constexpr (__is_same(T, bf16)) {
    for (i64 g = 0; g < (groups.by_table ? count / kFp8Group : 0); ++g) {
      const Place<T> group = row.at_group(g);
      const bool is_done = quantize_by_table<Vector>(group.x, kTable.by_mantissa[groups.table[g]], groups.base[g],
                                                     group.values, group.past_caches, group.next);
      left ^= u32{is_done} << g;
    }
  }
  for (i64 g = 0; left >> g != 0; ++g) {
    if (left >> g & 1) quantize_apart(row.at_group(g), smaller(count - g * kFp8Group, kFp8Group), groups, g);
  }
}

// Groups of 1 x 128.
template <class Vector, class T>
GLM5_INLINE void quantize_groups(const QuantizeFp8Args& args, const Place<T>& place, i64 count, f32* scales) {
  constexpr i64 kStep = kGroups<T> * kFp8Group;
  for (i64 begin = 0; begin < count; begin += kStep) {
    const Place<T> row = place.at_group(begin / kFp8Group);
    const i64 part = smaller(count - begin, kStep), whole = part / kFp8Group, groups_here = ceil_div(part, kFp8Group);
    typename Maxima<Vector, T>::Unsigned doubled[kGroups<T>];
    for (i64 g = 0; g < whole; ++g) doubled[g] = Maxima<Vector, T>{}.take_128(row.at_group(g).x).doubled();
    for (i64 g = whole; g < kGroups<T>; ++g) doubled[g] = typename Maxima<Vector, T>::Unsigned{};
    if (whole < groups_here) {
      Padded<T> padded;
      doubled[whole] = Maxima<Vector, T>{}.take_128(padded.fill(row.at_group(whole).x, part % kFp8Group)).doubled();
    }
    typename Vector::f32s amax = amax_of<Vector, T>(doubled);
    const u32 not_finite = not_finite_of<Vector>(amax, groups_here);
    for (i64 g = 0; not_finite >> g != 0; ++g) {
      const T* group = row.at_group(g).x;
      if (not_finite >> g & 1) amax[g] = finite_amax<Vector>(group, smaller(part - g * kFp8Group, kFp8Group), 0);
    }
    const Groups<Vector> groups(args, amax, not_finite);
    copy(groups.scale, groups_here, scales + begin / kFp8Group);
    quantize_row<Vector>(row, part, groups);
  }
}

// Values that no second-level cache holds are written past it, in whole cache lines: 15 % faster for rows, 25 % for
// blocks (measured on Zen 3).
template <class Vector>
GLM5_INLINE bool goes_past_caches(const QuantizeFp8Args& args, const e4m3* values) {
  constexpr i64 kStreamedBytes = 4 << 20;
  return args.values.shape[0] * args.values.shape[1] >= kStreamedBytes && args.values.stride[0] % Vector::kBytes == 0 &&
         reinterpret_cast<std::uintptr_t>(values) % Vector::kBytes == 0;
}

// ---- The three kinds of groups ----

template <class Vector, class T>
void quantize_rows(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
  // Scales are column-major: gather those of the 16 rows, so that each cache line is written at once.
  alignas(64) f32 scales[kTiling.row_height][kTiling.row_width / kFp8Group];
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, cols = area.col_end - area.col_begin;
  for (i64 r = 0; r < rows; ++r) {
    const i64 row = area.row_begin + r;
    const T* from = x.at(row, area.col_begin);
    e4m3* to = args.values.at(row, area.col_begin);
    // Its last values look ahead into the next row.
    const i64 turn = larger(0, cols - kRowAhead) / kRowStep * kRowStep;
    Place<T> place{from, kFp8Group, to, kFp8Group, {from + kRowAhead, kFp8Group}, goes_past_caches<Vector>(args, to)};
    quantize_groups<Vector>(args, place, turn, scales[r]);
    place = place.at_group(turn / kFp8Group);
    place.next.x = x.at(row + 1, area.col_begin);
    quantize_groups<Vector>(args, place, cols - turn, scales[r] + turn / kFp8Group);
  }
  for (i64 g = 0; g < ceil_div(cols, kFp8Group); ++g)
    for (i64 r = 0; r < rows; ++r) *args.scales.at(area.row_begin + r, area.col_begin / kFp8Group + g) = scales[r][g];
}

// Blocks side by side.
template <class Vector, class T>
void quantize_blocks(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
  constexpr i64 kBlocks = kTiling.block_width / kFp8Group;
  static_assert(kBlocks <= kGroups<T>);
  const auto x = args.x.as<const T>();
  const i64 cols = area.col_end - area.col_begin, blocks = ceil_div(cols, kFp8Group);
  Maxima<Vector, T> maxima[kBlocks] = {};
  Padded<T> padded;
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    for (i64 b = 0; b < blocks; ++b)
      maxima[b].take_128(padded.fill(x.at(row, area.col_begin + b * kFp8Group), cols - b * kFp8Group));
  }
  typename Maxima<Vector, T>::Unsigned doubled[kGroups<T>] = {};
  for (i64 b = 0; b < blocks; ++b) doubled[b] = maxima[b].doubled();
  typename Vector::f32s amax = amax_of<Vector, T>(doubled);
  const u32 not_finite = not_finite_of<Vector>(amax, blocks);
  for (i64 b = 0; not_finite >> b != 0; ++b) {
    if ((not_finite >> b & 1) == 0) continue;
    const i64 first = b * kFp8Group, width = smaller(cols - first, kFp8Group);
    amax[b] = 0;
    for (i64 row = area.row_begin; row < area.row_end; ++row)
      amax[b] = finite_amax<Vector>(x.at(row, area.col_begin + first), width, amax[b]);
  }
  const Groups<Vector> groups(args, amax, not_finite);
  copy(groups.scale, blocks, args.scales.at(area.row_begin / kFp8Group, area.col_begin / kFp8Group));
  for (i64 row = area.row_begin; row < area.row_end; ++row) {
    const T* from = x.at(row, area.col_begin);
    e4m3* to = args.values.at(row, area.col_begin);
    const Next<T> next{from + kBlockAhead, kFp8Group};
    const Place<T> place{from, kFp8Group, to, kFp8Group, next, goes_past_caches<Vector>(args, to)};
    quantize_row<Vector>(place, cols, groups);
  }
}

// 128 values of each column. A cache line lies between columns, so that they do not all fall into a few of the cache's
// sets: 15 % faster (measured on Zen 3).
template <class T>
using Column = T[kFp8Group + 64 / sizeof(T)];

// columns[c][r] = x[r * stride + c].
template <class Vector, class T>
GLM5_INLINE void transpose(const T* x, i64 stride, i64 rows, i64 cols, Column<T>* columns) {
  constexpr i64 kSide = 16 / sizeof(T), kWidth = Vector::kBytes / sizeof(T);
  const i64 whole_rows = rows / kSide * kSide, whole_cols = cols / kWidth * kWidth;
  for (i64 row = 0; row < whole_rows; row += kSide) {
    for (i64 col = 0; col < whole_cols; col += kWidth) {
      typename Vector::u8s lines[kSide];
#pragma GCC unroll 8
      for (i64 j = 0; j < kSide; ++j) lines[j] = Vector::load(x + (row + j) * stride + col);
      cpu::transpose_lanes<Vector, T>(lines);
#pragma GCC unroll 8
      for (i64 j = 0; j < kSide; ++j) Vector::store_lanes(&columns[col + j][row], kSide * sizeof(columns[0]), lines[j]);
    }
  }
  for (i64 row = 0; row < rows; ++row)
    for (i64 col = row < whole_rows ? whole_cols : 0; col < cols; ++col) columns[col][row] = x[row * stride + col];
}

// Columns as rows of a transposed copy. Once it is made, the area below this one, which is next, is prefetched, a row
// of it with each column: rows lie so far apart that the processor does not foresee them, and where they are a multiple
// of 4096 bytes apart, the caches hold the rows of one area and no more.
template <class Vector, class T>
void quantize_columns(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
  const auto x = args.x.as<const T>();
  const i64 rows = area.row_end - area.row_begin, cols = area.col_end - area.col_begin;
  const T* from = x.at(area.row_begin, area.col_begin);
  e4m3* to = args.values.at(area.col_begin, area.row_begin);
  alignas(64) Column<T> columns[kColumns];
  alignas(64) e4m3 padded[kColumns][kFp8Group];
  alignas(64) f32 scales[kColumns];
  const bool is_whole = rows == kFp8Group;
  if (is_whole && cols == kColumns) {
    transpose<Vector>(from, x.stride[0], kFp8Group, kColumns, columns);  // 10 % faster with its sizes known
  } else {
    __builtin_memset(columns, 0, sizeof(columns));
    transpose<Vector>(from, x.stride[0], rows, cols, columns);
  }
  const Place<T> place{columns[0],
                       sizeof(columns[0]) / sizeof(T),
                       is_whole ? to : padded[0],
                       is_whole ? args.values.stride[0] : kFp8Group,
                       {from + rows * x.stride[0], x.stride[0]},
                       is_whole && goes_past_caches<Vector>(args, to)};
  quantize_groups<Vector>(args, place, cols * kFp8Group, scales);
  for (i64 c = 0; c < (is_whole ? 0 : cols); ++c)
    copy(padded[c], rows, args.values.at(area.col_begin + c, area.row_begin));
  copy(scales, cols, args.scales.at(area.col_begin, area.group));
}

template <class Vector>
struct Kernel {
  template <class T>
  static void run(const QuantizeFp8Args& args, const cpu::Fp8Area& area) {
    if (is_done(args, area)) return;
    switch (args.group) {
      case Fp8Group::row:
        quantize_rows<Vector, T>(args, area);
        break;
      case Fp8Group::block:
        quantize_blocks<Vector, T>(args, area);
        break;
      case Fp8Group::column:
        quantize_columns<Vector, T>(args, area);
        break;
    }
    Vector::fence();  // streamed values are seen before whatever the thread signals next
  }
};

}  // namespace
}  // namespace glm5::quantize
