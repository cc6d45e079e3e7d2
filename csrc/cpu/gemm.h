// What the CPU kernels of fp8_gemm and gemm share: the sizes of their tiles and the layout of their workspace.
//
// m is taken in chunks. A chunk's rows of a are first brought into the form that the inner loops read ("packed"), once;
// then every item, a tile of columns for a block of the chunk's rows, walks along k. All numbers are those of the loops,
// not of the result: the summation tree knows none of them but the 128 of a block.
#pragma once

#include "core/tensor.h"
#include "cpu/float_environment.h"

namespace glm5::cpu {

constexpr i64 kGemmBlock = 128;       // k of a block
constexpr i64 kGemmStep = 32;         // k of a step of the summation tree
constexpr i64 kGemmTile = 64;         // columns of an item: never two scale blocks
constexpr i64 kGemmPackRows = 16;     // rows of an item of the packing phase
constexpr i64 kGemmChunk = 1024;      // rows packed at once
// Rows of an item. 256: a block of packed f32 (128 KiB) and the totals (64 KiB) stay in a 512 KiB L2 cache.
constexpr i64 kGemmVectorRows = 256;
// 1024: with AMX the work on a decoded block of b must be long enough to hide its decoding; L2 has 2 MiB there.
constexpr i64 kGemmTileRows = 1024;

// A thread's scratch: totals, a decoded block of b, and small change.
constexpr i64 kGemmTotalBytes = kGemmTileRows * kGemmTile * 4;
constexpr i64 kGemmPanelBytes = kGemmTile * kGemmBlock * 4;
constexpr i64 kGemmStageBytes = 32 * 1024;
constexpr i64 kGemmScratchBytes = kGemmTotalBytes + kGemmPanelBytes + kGemmStageBytes;

// Elements of one packed row; the longest form is f32, rows come in tiles of 16.
GLM5_INLINE i64 gemm_padded_k(i64 k) { return round_up(k, kGemmBlock); }
GLM5_INLINE i64 gemm_packed_bytes(i64 m, i64 k) {
  return round_up(smaller(m, kGemmChunk), kGemmPackRows) * gemm_padded_k(k) * 4;
}
// 64 more: the workspace is aligned to a cache line inside.
GLM5_INLINE i64 gemm_workspace_size(i64 m, i64 k, i64 threads) {
  return gemm_packed_bytes(m, k) + threads * kGemmScratchBytes + 64;
}

// The workspace of one call, seen by one thread.
struct GemmWorkspace {
  u8* packed;
  f32* totals;
  f32* panel;  // the decoded block of b
  u8* stage;

  GLM5_INLINE GemmWorkspace(const Tensor<u8, 1>& workspace, i64 m, i64 k, i64 thread) {
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    packed = workspace.data + (round_up(static_cast<i64>(address), 64) - static_cast<i64>(address));
    u8* own = packed + gemm_packed_bytes(m, k) + thread * kGemmScratchBytes;
    totals = reinterpret_cast<f32*>(own);
    panel = reinterpret_cast<f32*>(own + kGemmTotalBytes);
    stage = own + kGemmTotalBytes + kGemmPanelBytes;
  }
};

// The rows of a chunk as the vector kernels pack them: [block of rows][block of k][row][128], so that what a pair of
// blocks needs lies together.
struct PackedRows {
  f32* data;
  i64 rows, padded_k;

  GLM5_INLINE i64 rows_of_block(i64 first_row) const { return smaller(kGemmVectorRows, rows - first_row); }
  // 128 values of a row; rows of the same block follow at a distance of 128.
  GLM5_INLINE f32* at(i64 row, i64 k_block) const {
    const i64 first = row / kGemmVectorRows * kGemmVectorRows;
    return data + first * padded_k + (k_block * rows_of_block(first) + row - first) * kGemmBlock;
  }
};

// While it lives, floats round to nearest even and subnormal numbers count as zero, as in the AMX unit.
class FlushingFloatEnvironment {
 public:
#if defined(__x86_64__)
  GLM5_INLINE FlushingFloatEnvironment() {
    const unsigned flush = 0x8040;  // FTZ, DAZ
    __asm__ volatile("stmxcsr %0" : "=m"(before_) : : "memory");
    const unsigned now = (before_ & ~0x6000u) | flush;  // bits 13, 14: to nearest even
    __asm__ volatile("ldmxcsr %0" : : "m"(now) : "memory");
  }
  GLM5_INLINE ~FlushingFloatEnvironment() { __asm__ volatile("ldmxcsr %0" : : "m"(before_) : "memory"); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  GLM5_INLINE FlushingFloatEnvironment() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_) : : "memory");
    const u64 now = (before_ & ~(u64{3} << 22)) | (u64{1} << 24);  // RMode: to nearest even; FZ
    __asm__ volatile("msr fpcr, %0" : : "r"(now) : "memory");
  }
  GLM5_INLINE ~FlushingFloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(before_) : "memory"); }

 private:
  u64 before_;
#else
#error "gemm needs to know how this processor flushes subnormal numbers"
#endif

 public:
  FlushingFloatEnvironment(const FlushingFloatEnvironment&) = delete;
  FlushingFloatEnvironment& operator=(const FlushingFloatEnvironment&) = delete;
};

}  // namespace glm5::cpu
