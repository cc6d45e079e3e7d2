// Tensor maps: what cuTensorMapEncodeTiled accepts, and what the emulated copy engine reads from the 128 opaque bytes.
// https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__TENSOR__MEMORY.html
#pragma once

#include <string>
#include <vector>

#include "swizzle.h"

namespace glm5::emulator {

constexpr int kMaxTensorRank = 5;
constexpr u32 kTensorMapBytes = 128, kTensorMapAlignment = 64;

enum class TensorElement : u8 { u8_, u16_, u32_, i32_, u64_, i64_, f16, f32, f64, bf16, f32_ftz, tf32, tf32_ftz };

struct TensorMap {
  static constexpr u32 kMagic = 0x544d4150;
  u32 magic;
  u8 rank, swizzle, element, fills_nan;
  u64 address;
  u32 last[kMaxTensorRank];        // dimension - 1: a dimension may be 2^32
  u64 stride[kMaxTensorRank - 1];  // in bytes, of dimensions 1 and up
  u16 box[kMaxTensorRank];
  u8 step[kMaxTensorRank];  // element strides

  i64 dimension(int d) const { return i64{last[d]} + 1; }
  i64 stride_of(int d) const { return d == 0 ? element_bytes() : static_cast<i64>(stride[d - 1]); }
  u32 element_bytes() const;
  u32 box_bytes() const;
};
static_assert(sizeof(TensorMap) <= kTensorMapBytes);

struct TensorMapRequest {
  int element, rank, interleave, swizzle, fill;  // as the driver's enumerations number them
  u64 map, address;                              // where the map is written; the tensor
  const u64* dimensions;
  const u64* strides;
  const u32* box;
  const u32* steps;
};

// Fills `map`; or the rule that the request breaks.
std::string encode_tensor_map(const TensorMapRequest& request, TensorMap& map);

// The rule that a map made or changed by tensormap.replace breaks; empty where it is as the driver would have made it.
std::string broken_map_rule(const TensorMap& map);

// Part of a box in memory: `bytes` from `from` to `to`; from == 0 is beyond the tensor, and filled.
struct Segment {
  u64 to, from;
  u32 bytes;
};

// The box at the coordinates, as pieces of at most 16 bytes where swizzled. to: shared addresses as the swizzle sees
// them, starting at `shared`; from: global addresses. A store has the same pieces, the other way round.
std::vector<Segment> box_segments(const TensorMap& map, const i64* coordinates, u64 shared);

}  // namespace glm5::emulator
