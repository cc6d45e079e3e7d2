#include "tensor_map.h"

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <sstream>

namespace glm5::emulator {
namespace {

constexpr u32 kElementBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr int kElementKinds = sizeof(kElementBytes) / sizeof(kElementBytes[0]);

template <class... Parts>
std::string sentence(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

std::string broken_layout_rule(const TensorMapRequest& request) {
  if (request.map % kTensorMapAlignment) return "the map must be aligned to 64 bytes";
  if (request.element < 0 || request.element >= kElementKinds) return sentence("unknown data type ", request.element);
  if (request.rank < 1 || request.rank > kMaxTensorRank) return sentence("rank must be 1 to 5, got ", request.rank);
  if (request.interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) return "interleaved layouts are not emulated";
  if (request.swizzle < 0 || request.swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
    return sentence("unknown swizzle ", request.swizzle);
  if (request.address % 16) return "the tensor must start at a multiple of 16 bytes";
  const bool is_integer = request.element < static_cast<int>(TensorElement::f16);
  if (request.fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA && is_integer) {
    return "NaN fill needs a floating-point type";
  }
  return {};
}

std::string broken_size_rule(const TensorMapRequest& request) {
  for (int d = 0; d < request.rank; ++d) {
    if (request.dimensions[d] == 0 || request.dimensions[d] > u64{1} << 32) {
      return sentence("dimension ", d, " must be 1 to 2^32, got ", request.dimensions[d]);
    }
    if (request.box[d] == 0 || request.box[d] > 256)
      return sentence("box ", d, " must be 1 to 256, got ", request.box[d]);
    if (request.steps[d] == 0 || request.steps[d] > 8) {
      return sentence("element stride ", d, " must be 1 to 8, got ", request.steps[d]);
    }
  }
  for (int d = 1; d < request.rank; ++d) {
    const u64 stride = request.strides[d - 1];
    if (stride % 16 || stride >= u64{1} << 40) {
      return sentence("stride ", d, " must be a multiple of 16 bytes below 2^40, got ", stride);
    }
  }
  const u32 inner = request.box[0] * kElementBytes[request.element];
  if (inner % 16) return sentence("a box row must be a multiple of 16 bytes, got ", inner);
  const auto mode = static_cast<Swizzle>(request.swizzle);
  if (mode != Swizzle::none && inner > span_of(mode)) {
    return sentence("a box row of ", inner, " bytes is wider than the swizzle's ", span_of(mode));
  }
  return {};
}

}  // namespace

u32 TensorMap::element_bytes() const { return kElementBytes[element]; }

u32 TensorMap::box_bytes() const {
  u32 bytes = element_bytes();
  for (int d = 0; d < rank; ++d) bytes *= box[d];
  return bytes;
}

std::string encode_tensor_map(const TensorMapRequest& request, TensorMap& map) {
  std::string rule = broken_layout_rule(request);
  if (rule.empty()) rule = broken_size_rule(request);
  if (!rule.empty()) return rule;
  map = TensorMap{};
  map.magic = TensorMap::kMagic;
  map.rank = static_cast<u8>(request.rank);
  map.swizzle = static_cast<u8>(request.swizzle);
  map.element = static_cast<u8>(request.element);
  map.fills_nan = request.fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  map.address = request.address;
  for (int d = 0; d < request.rank; ++d) {
    map.last[d] = static_cast<u32>(request.dimensions[d] - 1);
    map.box[d] = static_cast<u16>(request.box[d]);
    map.step[d] = static_cast<u8>(request.steps[d]);
    if (d > 0) map.stride[d - 1] = request.strides[d - 1];
  }
  return {};
}

std::string broken_map_rule(const TensorMap& map) {
  u64 dimensions[kMaxTensorRank];
  u32 box[kMaxTensorRank], steps[kMaxTensorRank];
  for (int d = 0; d < kMaxTensorRank; ++d) {
    dimensions[d] = static_cast<u64>(map.dimension(d));
    box[d] = map.box[d];
    steps[d] = map.step[d];
  }
  const TensorMapRequest request{.element = map.element,
                                 .rank = map.rank,
                                 .interleave = CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 .swizzle = map.swizzle,
                                 .fill = map.fills_nan,
                                 .map = 0,
                                 .address = map.address,
                                 .dimensions = dimensions,
                                 .strides = map.stride,
                                 .box = box,
                                 .steps = steps};
  const std::string rule = broken_layout_rule(request);
  return rule.empty() ? broken_size_rule(request) : rule;
}

namespace {

// Appends one row of the box (dimension 0), whose elements lie `step` apart in global memory.
class RowWriter {
 public:
  RowWriter(const TensorMap& map, u64 shared, std::vector<Segment>& out)
      : map_(map), shared_(shared), mode_(static_cast<Swizzle>(map.swizzle)), out_(out) {}

  // row: address of element 0 of this row; 0 where another dimension is out of bounds.
  void add(u64 row, i64 first) {
    const i64 size = map_.element_bytes(), step = map_.step[0];
    for (i64 i = 0; i < map_.box[0];) {
      const i64 x = first + i * step, run = run_from(row, x, map_.box[0] - i);
      const bool exists = row != 0 && x >= 0 && x < map_.dimension(0);
      put(exists ? row + static_cast<u64>(x * size) : 0, static_cast<u32>(run * size));
      i += run;
    }
  }

 private:
  // How many of `rest` elements from x on lie side by side, or are all beyond the tensor.
  i64 run_from(u64 row, i64 x, i64 rest) const {
    const i64 limit = map_.dimension(0);
    if (row == 0 || x >= limit) return rest;
    if (map_.step[0] != 1) return 1;
    return std::min(rest, x < 0 ? -x : limit - x);
  }

  void put(u64 from, u32 bytes) {
    while (bytes > 0) {
      const u64 to = shared_ + offset_;
      const u32 chunk_left = 16 - static_cast<u32>(to % 16);
      const u32 piece = mode_ == Swizzle::none || bytes < chunk_left ? bytes : chunk_left;
      out_.push_back({swizzled(to, mode_), from, piece});
      offset_ += piece;
      if (from) from += piece;
      bytes -= piece;
    }
  }

  const TensorMap& map_;
  u64 shared_;
  Swizzle mode_;
  std::vector<Segment>& out_;
  u64 offset_ = 0;
};

}  // namespace

std::vector<Segment> box_segments(const TensorMap& map, const i64* coordinates, u64 shared) {
  std::vector<Segment> segments;
  RowWriter writer(map, shared, segments);
  int index[kMaxTensorRank] = {};
  while (true) {
    u64 row = map.address;
    bool exists = true;
    for (int d = 1; d < map.rank; ++d) {
      const i64 x = coordinates[d] + i64{index[d]} * map.step[d];
      exists = exists && x >= 0 && x < map.dimension(d);
      row += static_cast<u64>(x * map.stride_of(d));
    }
    writer.add(exists ? row : 0, coordinates[0]);
    int d = 1;
    while (d < map.rank && ++index[d] == map.box[d]) index[d++] = 0;
    if (d >= map.rank) return segments;
  }
}

}  // namespace glm5::emulator

// The driver's function, as the library finds it. The rule that a refused request breaks is kept for who asks.
extern "C" {

const char* glm5_emulator_tensor_map_refusal();

namespace {
thread_local std::string last_refusal;
}

const char* glm5_emulator_tensor_map_refusal() { return last_refusal.c_str(); }

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                                const cuuint64_t* dimensions, const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  using namespace glm5;
  if (map == nullptr || dimensions == nullptr || box == nullptr || steps == nullptr ||
      (rank > 1 && strides == nullptr)) {
    last_refusal = "a pointer is null";
    return CUDA_ERROR_INVALID_VALUE;
  }
  u64 wide_dimensions[5] = {}, wide_strides[4] = {};
  for (cuuint32_t d = 0; d < rank && d < 5; ++d) wide_dimensions[d] = dimensions[d];
  for (cuuint32_t d = 0; d + 1 < rank && d < 4; ++d) wide_strides[d] = strides[d];
  emulator::TensorMap fields;
  last_refusal = emulator::encode_tensor_map({.element = static_cast<int>(type),
                                              .rank = static_cast<int>(rank),
                                              .interleave = static_cast<int>(interleave),
                                              .swizzle = static_cast<int>(swizzle),
                                              .fill = static_cast<int>(fill),
                                              .map = reinterpret_cast<u64>(map),
                                              .address = reinterpret_cast<u64>(address),
                                              .dimensions = wide_dimensions,
                                              .strides = wide_strides,
                                              .box = box,
                                              .steps = steps},
                                             fields);
  if (!last_refusal.empty()) return CUDA_ERROR_INVALID_VALUE;
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &fields, sizeof(fields));
  return CUDA_SUCCESS;
}
}
