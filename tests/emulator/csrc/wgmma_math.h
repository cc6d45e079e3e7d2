// wgmma's operands in shared memory and its arithmetic, on plain memory: no warps, no checks.
//
// One instruction takes 32 bytes of k from each row of both operands: 8 tf32, 16 f16 or bf16, 32 e4m3, e5m2, s8 or u8.
// Products are exact in f32 and are added in ascending k by fused multiply-adds; hardware keeps fewer bits for 8-bit
// types.
#pragma once

#include <immintrin.h>

#include <memory>
#include <vector>

#include "swizzle.h"

namespace glm5::emulator {

enum class MatrixElement : u8 { f16, bf16, tf32, e4m3, e5m2, s8, u8_ };
constexpr int element_bytes(MatrixElement element) {
  return element <= MatrixElement::bf16 ? 2 : element == MatrixElement::tf32 ? 4 : 1;
}
constexpr bool is_integer(MatrixElement element) { return element >= MatrixElement::s8; }

constexpr int kWgmmaKBytes = 32;

// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout-matrix-descriptor
struct MatrixDescriptor {
  u32 start, leading, stride;  // bytes
  u32 base_offset;
  Swizzle swizzle;
};
MatrixDescriptor decode_descriptor(u64 bits);

// The 16-byte chunks of rows [first, first + rows), first a multiple of 8: chunk i of the list is, K-major, half i % 2
// of row first + i / 2; MN-major (16-bit types), 8 rows from first + 8 (i % (rows / 8)) at k = i / (rows / 8).
// Addresses are shared addresses relative to the block, below 2^18.
std::vector<u32> chunk_addresses(const MatrixDescriptor& descriptor, bool mn_major, int first, int rows);

// Rows of 32 bytes from chunks in that order.
void rows_from_chunks(const u8* chunks, bool mn_major, int rows, u8* out);

u64 hash_bytes(const u8* bytes, size_t count);

// A hash over rows of 128 bytes.
class RowHash {
 public:
  RowHash();
  void add(const u8* row);
  u64 value() const;

 private:
  __m256i sum_, key_;
};

// An operand B in the order of the arithmetic: [n / 8][parity][k][4] values of f32 or i32, columns 8 g + parity + 2 j.
struct PackedB {
  std::vector<u8> raw;      // the rows of 32 bytes
  std::vector<f32> values;  // the bits of i32 for integers
};
void pack_b(MatrixElement element, int n, const u8* rows, std::vector<f32>& values);

// Recently packed operands: the four warps of a warpgroup, and warpgroups that share B, pack it once.
class OperandCache {
 public:
  const f32* find(u64 key, MatrixElement element, int n, const std::vector<u8>& rows);

 private:
  struct Entry {
    u64 key = ~u64{0};
    MatrixElement element;
    int n = 0;
    PackedB packed;
  };
  static constexpr int kEntries = 16;
  Entry entries_[kEntries];
};

// The 16 rows of A of one warp, 32 bytes each, -> [k][half][8 row][..]: as the accumulator's lanes want them.
// 64 values per k: for half h and lane l, the value of row l / 4 + 8 h.
void pack_a(MatrixElement element, const u8* rows, bool negate, f32* values);

constexpr int k_of(MatrixElement element) { return kWgmmaKBytes / element_bytes(element); }

// registers[i][lane] (+)= A B^T for i in [0, n / 2): register i of lane l is row l / 4 + 8 (i / 2 % 2), column
// 8 (i / 4) + 2 (l % 4) + i % 2 of the warp's 16 x n.
void multiply_f32(const f32* a, const f32* b, int k, int n, f32* const* registers, bool accumulate);
void multiply_i32(const f32* a, const f32* b, int k, int n, i32* const* registers, bool accumulate, bool saturate);

f32 f16_to_f32(u16 bits);
u16 f32_to_f16(f32 value);

}  // namespace glm5::emulator
