// The parts of the asynchronous instructions that need no warps: the arithmetic of wgmma, mbarriers, tensor maps and
// boxes, the race check. Prints what is wrong; the exit status counts it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <random>
#include <string>

#include "../csrc/mbarrier.h"
#include "../csrc/race_check.h"
#include "../csrc/tensor_map.h"
#include "../csrc/wgmma_math.h"

namespace {

using namespace glm5;
using namespace glm5::emulator;

int failures = 0;
void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::printf("%s\n", what.c_str());
}

// ---- arithmetic ----

double value_of(MatrixElement element, u32 bits) {
  const auto small = [&](int exponent_bits, int mantissa_bits) {
    const int width = 1 + exponent_bits + mantissa_bits, bias = (1 << (exponent_bits - 1)) - 1;
    const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    const int mantissa = static_cast<int>(bits) & ((1 << mantissa_bits) - 1);
    const double sign = bits >> (width - 1) & 1 ? -1 : 1;
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  };
  switch (element) {
    case MatrixElement::e4m3:
      return (bits & 0x7f) == 0x7f ? NAN : small(4, 3);
    case MatrixElement::e5m2:
      return (bits & 0x7f) > 0x7c ? NAN : (bits & 0x7f) == 0x7c ? (bits & 0x80 ? -INFINITY : INFINITY) : small(5, 2);
    case MatrixElement::f16:
      return small(5, 10);
    case MatrixElement::bf16:
      return small(8, 7);
    case MatrixElement::tf32: {
      float wide;
      const u32 kept = bits & ~0x1fffu;
      std::memcpy(&wide, &kept, 4);
      return wide;
    }
    case MatrixElement::s8:
      return static_cast<i8>(bits);
    case MatrixElement::u8_:
      return bits;
  }
  return 0;
}

u32 element_at(const std::vector<u8>& rows, int row, int k, int size) {
  u32 bits = 0;
  std::memcpy(&bits, rows.data() + row * kWgmmaKBytes + k * size, static_cast<size_t>(size));
  return bits;
}

// Every register of every lane against a plain sum in the same order.
void test_multiply(MatrixElement element, int n) {
  std::mt19937 random(static_cast<u32>(element) * 1000 + static_cast<u32>(n));
  std::vector<u8> a_rows(16 * kWgmmaKBytes), b_rows(static_cast<size_t>(n) * kWgmmaKBytes);
  const auto fill = [&](std::vector<u8>& rows) {
    for (u8& byte : rows) byte = static_cast<u8>(random() & 0xbb);  // exponents stay far from inf and NaN
  };
  fill(a_rows);
  fill(b_rows);
  const int k_count = k_of(element), size = element_bytes(element);
  std::vector<f32> a(64 * kWgmmaKBytes), b;
  pack_a(element, a_rows.data(), false, a.data());
  pack_b(element, n, b_rows.data(), b);
  std::vector<f32> sums(static_cast<size_t>(n) / 2 * 32);
  std::vector<f32*> registers;
  for (int i = 0; i < n / 2; ++i) registers.push_back(sums.data() + 32 * i);
  if (is_integer(element)) {
    multiply_i32(a.data(), b.data(), k_count, n, reinterpret_cast<i32* const*>(registers.data()), false, false);
  } else {
    multiply_f32(a.data(), b.data(), k_count, n, registers.data(), false);
  }
  int wrong = 0;
  for (int i = 0; i < n / 2; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      f32 sum = 0;
      for (int k = 0; k < k_count; ++k) {
        sum = std::fma(static_cast<f32>(value_of(element, element_at(a_rows, row, k, size))),
                       static_cast<f32>(value_of(element, element_at(b_rows, column, k, size))), sum);
      }
      const f32 found =
          is_integer(element) ? static_cast<f32>(__builtin_bit_cast(i32, registers[i][lane])) : registers[i][lane];
      wrong += !(sum == found);
    }
  }
  expect(wrong == 0, "multiply of element " + std::to_string(static_cast<int>(element)) + ", n " + std::to_string(n) +
                         ": " + std::to_string(wrong) + " wrong");
}

void test_small_floats() {
  for (const MatrixElement element : {MatrixElement::e4m3, MatrixElement::e5m2}) {
    for (u32 bits = 0; bits < 256; ++bits) {
      std::vector<u8> rows(8 * kWgmmaKBytes);
      rows[0] = static_cast<u8>(bits);
      std::vector<f32> b;
      pack_b(element, 8, rows.data(), b);
      const double expected = value_of(element, bits);
      expect(std::isnan(expected) ? std::isnan(b[0]) : b[0] == expected,
             "byte " + std::to_string(bits) + " is decoded wrongly");
    }
  }
}

// ---- mbarriers ----

void test_barrier() {
  BarrierWord word;
  word.is_valid = true;
  word.pending = word.expected = 2;
  bool completes = false;
  expect(word.has_passed(1) && !word.has_passed(0), "a fresh barrier passes a wait on parity 1 only");
  expect(word.expect(-64, completes) == nullptr && !completes, "bytes may come before they are announced");
  expect(word.arrive_expecting(1, 128, false, completes) == nullptr && word.bytes == 64, "announced bytes add up");
  expect(BarrierWord::from(word.bits()).bits() == word.bits(), "the word survives packing");
  word.expect(-96, completes);
  expect(BarrierWord::from(word.bits()).bytes == -32, "a negative count survives packing");
  word.expect(32, completes);
  expect(word.arrive(1, completes) == nullptr && completes && word.phase == 1 && word.pending == 2, "the phase turns");
  expect(word.has_passed(0) && !word.has_passed(1), "after one phase, parity 0 has passed");
  expect(word.arrive(3, completes) != nullptr, "more arrivals than expected");
  word.arrive(1, completes);
  expect(word.expect(-16, completes) == nullptr, "early bytes are allowed while arrivals are to come");
  expect(word.arrive(1, completes) != nullptr, "bytes that nobody announced");
  BarrierWord half{true, 0, 1, 2, 0};
  expect(half.arrive(2, completes) != nullptr, "more arrivals than are pending");
  BarrierWord dropped{true, 0, 2, 2, 0};
  dropped.drop(1, completes);
  expect(dropped.expected == 1 && dropped.pending == 1, "a drop lowers what later phases expect");
  BarrierWord full{true, 0, 1, 1, 0};
  expect(full.expect(kMostBytes + 1, completes) != nullptr, "the byte count has a range");
}

// ---- tensor maps ----

struct Request {
  u64 dimensions[5] = {100, 50, 7}, strides[4] = {128, 8192};
  u32 box[5] = {32, 8, 2}, steps[5] = {1, 1, 1};
  TensorMapRequest request{.element = 9,
                           .rank = 3,
                           .interleave = 0,
                           .swizzle = 2,
                           .fill = 0,
                           .map = 64,
                           .address = 4096,
                           .dimensions = dimensions,
                           .strides = strides,
                           .box = box,
                           .steps = steps};
  std::string refusal() const {
    TensorMap map;
    return encode_tensor_map(request, map);
  }
};

void test_map_rules() {
  expect(Request{}.refusal().empty(), "a good map: " + Request{}.refusal());
  const auto refused = [](const char* what, auto change) {
    Request bad;
    change(bad);
    expect(!bad.refusal().empty(), std::string("must be refused: ") + what);
  };
  refused("an unaligned map", [](Request& r) { r.request.map = 72; });
  refused("an unaligned tensor", [](Request& r) { r.request.address = 4104; });
  refused("a stride of 8 bytes more", [](Request& r) { r.strides[0] = 136; });
  refused("a stride of 2^40", [](Request& r) { r.strides[1] = u64{1} << 40; });
  refused("a box of 257", [](Request& r) { r.box[1] = 257; });
  refused("an empty box", [](Request& r) { r.box[1] = 0; });
  refused("an inner box of 24 bytes", [](Request& r) { r.box[0] = 12; });
  refused("an inner box beyond the swizzle", [](Request& r) { r.box[0] = 64; });
  refused("an element stride of 9", [](Request& r) { r.steps[0] = 9; });
  refused("rank 6", [](Request& r) { r.request.rank = 6; });
  refused("an empty dimension", [](Request& r) { r.dimensions[2] = 0; });
  refused("NaN fill of integers", [](Request& r) { r.request.fill = 1, r.request.element = 0; });
}

// Every element of a box by the definition, against the segments.
void test_box(i64 x, i64 y, i64 z, int swizzle, u32 step) {
  Request base;
  base.request.swizzle = swizzle;
  base.box[0] = swizzle == 3 ? 64 : swizzle == 2 ? 32 : 16;
  base.steps[0] = step;
  TensorMap map;
  expect(encode_tensor_map(base.request, map).empty(), "the map of a box");
  const i64 coordinates[] = {x, y, z};
  constexpr u64 kShared = 2048;
  std::map<u64, u64> bytes;
  for (const Segment& segment : box_segments(map, coordinates, kShared)) {
    for (u32 i = 0; i < segment.bytes; ++i) bytes[segment.to + i] = segment.from ? segment.from + i : 0;
  }
  expect(bytes.size() == map.box_bytes(), "a box fills its bytes once");
  u64 offset = 0;
  int wrong = 0;
  for (u32 c = 0; c < base.box[2]; ++c) {
    for (u32 b = 0; b < base.box[1]; ++b) {
      for (u32 a = 0; a < base.box[0]; ++a, offset += 2) {
        const i64 at[] = {x + i64{a} * step, y + b, z + c};
        bool exists = true;
        for (int d = 0; d < 3; ++d) exists = exists && at[d] >= 0 && at[d] < static_cast<i64>(base.dimensions[d]);
        const u64 from = exists ? 4096 + static_cast<u64>(at[0] * 2 + at[1] * 128 + at[2] * 8192) : 0;
        const u64 linear = kShared + offset, mask = swizzle == 3 ? 0x70 : swizzle == 2 ? 0x30 : swizzle == 1 ? 0x10 : 0;
        wrong += bytes[linear ^ (linear >> 3 & mask)] != from;
      }
    }
  }
  expect(wrong == 0,
         "a box at " + std::to_string(x) + ", " + std::to_string(y) + ": " + std::to_string(wrong) + " wrong elements");
}

// ---- races ----

// Warps whose lanes act together, or one by one.
struct Actors {
  AgentNumbers numbers{.warps = 4, .warpgroups = 1};
  RaceCheck check{numbers, 1, 8192};
  WarpOrder warps[4];
  Actors() {
    for (u32 i = 0; i < 4; ++i) warps[i] = WarpOrder(i, numbers);
  }
  Accessor lane(int warp, int lane) {
    return {.agent = warps[warp].agent(), .clock = warps[warp].clock(), .view = &warps[warp].view(lane),
            .lanes = u32{1} << lane, .order = &warps[warp]};
  }
  Conflict write(int warp, u32 address, u32 bytes, int by = 0) {
    warps[warp].note_access(u32{1} << by);
    return check.write(address, bytes, lane(warp, by));
  }
  Conflict read(int warp, u32 address, u32 bytes, int by = 0) {
    warps[warp].note_access(u32{1} << by);
    return check.read(address, bytes, lane(warp, by));
  }
  Conflict read_by_proxy(int warp, u32 address, u32 bytes) {
    Accessor who = lane(warp, 0);
    who.proxy_reader = warp;
    return check.read(address, bytes, who);
  }
  void order(int from, int to, u32 from_lanes = kAllLanes, u32 to_lanes = kAllLanes) {
    warps[to].learn(to_lanes, warps[from].done_by(from_lanes));
  }
  void fence(int warp, u32 lanes = kAllLanes) {
    ProxyFence fence{.lanes = lanes, .own = warps[warp].clock(), .copies = 0, .others = 0, .others_copies = 0};
    const Clocks& done = warps[warp].done_by(lanes);
    fence.others = done.of(warps[warp].agent());
    check.fence(static_cast<u32>(warp), fence, done);
  }
};

bool is_race(const Conflict& conflict) { return conflict.kind == Conflict::Kind::race; }
bool is_proxy(const Conflict& conflict) { return conflict.kind == Conflict::Kind::proxy; }

void test_races() {
  Actors a;
  expect(!a.write(0, 1024, 16), "the first write");
  expect(is_race(a.read(1, 1024, 4)), "an unordered read of a write");
  a.order(0, 1);
  expect(!a.read(1, 1024, 16), "an ordered read");
  expect(!a.write(0, 1040, 4) && !a.write(1, 1044, 4), "neighbours are no race");
  a.order(0, 2);
  expect(!a.read(2, 1024, 16), "a second reader");
  a.order(1, 0);
  expect(is_race(a.write(0, 1024, 16)), "a write after one of two readers");
  a.order(0, 3);
  expect(!a.read(3, 1024, 16), "a third reader");
  a.order(2, 0);
  expect(is_race(a.write(0, 1024, 16)), "a write after two of three readers");
  a.order(3, 0);
  expect(!a.write(0, 1024, 16), "a write after both readers");
}

void test_bytes() {
  Actors a;
  expect(!a.write(0, 1024, 2) && !a.write(1, 1026, 1) && !a.write(2, 1027, 1), "bytes of a word are told apart");
  expect(is_race(a.write(3, 1024, 4)), "a word meets the bytes in it");
  const Conflict conflict = a.read(3, 1024, 16);
  expect(is_race(conflict) && conflict.address == 1024, "the conflict names the first byte");
  a.order(0, 3);
  expect(a.read(3, 1024, 16).address == 1026, "and then the next one");
  a.order(1, 3);
  a.order(2, 3);
  expect(!a.write(3, 1024, 16), "all of them are known");
  expect(is_race(a.read(0, 1027, 1)), "the bytes that were written together have their writer");
  expect(!a.write(3, 1026, 1) && is_race(a.read(1, 1024, 1)), "and are told apart again");
}

void test_lanes() {
  Actors a;
  a.write(0, 1024, 4, 3);
  expect(!a.read(0, 1024, 4, 3), "a lane knows what it did itself");
  expect(is_race(a.read(0, 1024, 4, 4)), "another lane of the warp does not");
  a.warps[0].meet(0xf0);
  expect(is_race(a.read(0, 1024, 4, 4)), "nor after a meeting without the writer");
  a.warps[0].meet(0x18);
  expect(!a.read(0, 1024, 4, 4) && is_race(a.read(0, 1024, 4, 5)), "lanes that met know of it, and no others");
  expect(is_race(a.write(0, 1024, 4, 3)), "the reader is not known to the writer");
  a.warps[0].meet(kAllLanes);
  expect(!a.write(0, 1024, 4, 7), "all lanes met");
  expect(is_race(a.write(0, 1024, 4, 8)), "two writers");
  const Accessor pair = {.agent = 0, .clock = a.warps[0].clock(), .view = &a.warps[0].view(0), .lanes = 0x180,
                         .order = &a.warps[0]};
  expect(is_race(a.check.read(1024, 4, pair)), "of two lanes that read as one, one is not the writer");
}

void test_lanes_of_two_warps() {
  Actors a;
  for (int lane = 0; lane < 32; ++lane) a.read(0, 1024u + 4 * static_cast<u32>(lane), 4, lane);
  a.order(0, 1, 1);  // lane 0 releases for all of them, without a meeting
  expect(!a.write(1, 1024, 4), "lane 0 has read");
  expect(is_race(a.write(1, 1028, 4)), "lane 1 may still read");
  a.warps[0].meet(kAllLanes);
  a.order(0, 1, 1);
  expect(!a.write(1, 1028, 4), "after the meeting lane 0 speaks for all");
  a.order(1, 2, kAllLanes, 1);  // lane 0 waits, without a meeting after
  expect(!a.read(2, 1024, 4, 0), "lane 0 has waited");
  expect(is_race(a.read(2, 1024, 4, 9)), "lane 9 has not");
  a.warps[2].meet(kAllLanes);
  expect(!a.read(2, 1024, 4, 9), "lane 0 has told lane 9");
}

// A lane knows of its own copies once it has waited for them; others once they have met it.
void test_own_copies() {
  Actors a;
  WarpOrder& order = a.warps[0];
  order.start(order.cp_async, 0x3);
  const auto copy = [&](int by) {
    Accessor who = a.lane(0, by);
    who.agent = order.cp_async.agent;
    who.clock = order.cp_async.clock;
    return a.check.write(1024u + 16 * static_cast<u32>(by), 16, who);
  };
  expect(!copy(0) && !copy(1), "two lanes copy");
  expect(is_race(a.read(0, 1024, 4, 0)), "the copy is under way");
  order.wait(order.cp_async, 0, order.cp_async.clock);
  order.wait(order.cp_async, 1, order.cp_async.clock);
  expect(!a.read(0, 1024, 4, 0), "lane 0 has waited for its copy");
  expect(is_race(a.read(0, 1040, 4, 0)), "and not for that of lane 1");
  order.meet(kAllLanes);
  expect(!a.read(0, 1040, 4, 0), "they have met");
}

void test_proxy() {
  Actors a;
  a.write(0, 2048, 16);
  a.order(0, 1);
  expect(is_proxy(a.read_by_proxy(1, 2048, 16)), "no fence");
  a.fence(0);
  expect(is_proxy(a.read_by_proxy(1, 2048, 16)), "a fence that the reader does not know of");
  a.order(0, 1);
  expect(!a.read_by_proxy(1, 2048, 16), "a fence of the writer");
  a.write(0, 2064, 16);
  a.order(0, 1);
  expect(is_proxy(a.read_by_proxy(1, 2064, 16)), "a write after the fence");
  a.fence(1);
  expect(!a.read_by_proxy(1, 2064, 16), "a fence of the reader");
  a.write(0, 2080, 16, 5);
  a.fence(0, 1);
  a.warps[0].meet(kAllLanes);
  a.order(0, 1);
  expect(is_proxy(a.read_by_proxy(1, 2080, 16)), "a fence of another lane, which did not know of the write");
  a.fence(0, 1);
  a.order(0, 1);
  expect(!a.read_by_proxy(1, 2080, 16), "a fence of another lane, which did");
}

}  // namespace

int main() {
  for (const auto element : {MatrixElement::f16, MatrixElement::bf16, MatrixElement::tf32, MatrixElement::e4m3,
                             MatrixElement::e5m2, MatrixElement::s8, MatrixElement::u8_}) {
    for (const int n : {8, 16, 112, 256}) test_multiply(element, n);
  }
  test_small_floats();
  test_barrier();
  test_map_rules();
  for (int swizzle = 0; swizzle < 4; ++swizzle) {
    for (const u32 step : {1u, 2u}) {
      test_box(0, 0, 0, swizzle, step);
      test_box(-5, -3, 6, swizzle, step);
      test_box(90, 45, -1, swizzle, step);
      test_box(200, 0, 0, swizzle, step);
    }
  }
  test_races();
  test_bytes();
  test_lanes();
  test_lanes_of_two_warps();
  test_own_copies();
  test_proxy();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
