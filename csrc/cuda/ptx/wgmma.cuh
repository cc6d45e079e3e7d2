// wgmma: the warpgroup's asynchronous matrix instruction. The instruction itself comes from CuTe's atoms.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <utility>

#include "core/types.h"
#include "cuda/ptx/address.cuh"

namespace glm5::ptx {

// Before the first wgmma, and whenever a thread has touched the accumulators since the last one.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most kPending committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads and writes of accumulators across.
template <int kCount>
__device__ __forceinline__ void pin(f32 (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// Descriptor of a K-major operand in shared memory: rows of 128 bytes, swizzled in 128-byte mode, in atoms of 8 rows
// that follow one another. Bits 0-13: address / 16; 32-45: bytes from one atom to the next / 16; 62-63: 1 = 128-byte
// swizzle. The swizzle is a function of the address, so a step of 32 bytes along k is +2.
__device__ __forceinline__ u64 wgmma_descriptor(const void* operand) {
  return (u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16) | ((smem_address(operand) & 0x3ffff) >> 4);
}

constexpr u64 kDescriptorStepK32 = 32 >> 4;

template <int kN>
struct WgmmaE4m3;
template <>
struct WgmmaE4m3<16> : cute::SM90::GMMA::MMA_64x16x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<32> : cute::SM90::GMMA::MMA_64x32x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<64> : cute::SM90::GMMA::MMA_64x64x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<96> : cute::SM90::GMMA::MMA_64x96x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<128> : cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<176> : cute::SM90::GMMA::MMA_64x176x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct WgmmaE4m3<192> : cute::SM90::GMMA::MMA_64x192x32_F32E4M3E4M3_SS_TN<> {};

// d[64, n] = a[64, 32] b[n, 32]^T, plus d where `accumulate`. Register i of lane l of warp w is row
// 16 w + l / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (l % 4) + i % 2.
template <int kRegisters>
__device__ __forceinline__ void wgmma_m64k32_f32_e4m3_e4m3(f32 (&d)[kRegisters], u64 a, u64 b, bool accumulate) {
  using cute::SM90::GMMA::ScaleOut;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    WgmmaE4m3<2 * kRegisters>::fma(a, b, d[kIndex]..., accumulate ? ScaleOut::One : ScaleOut::Zero);
  }(std::make_integer_sequence<int, kRegisters>{});
}

// The dimension along which an operand has unit stride: k, or its rows (m or n). Only 16-bit types know the second.
enum class Major : int { k, rows };

// Descriptor of a row-major operand: blocks of 64 rows by 64 k of 16-bit values that follow one another; a block has
// one line of 128 bytes (64 rows) per k, swizzled as above. Bits 16-29: bytes from one block to the next / 16; 32-45:
// bytes from 8 k to the next 8 k / 16. A step of 16 k is 16 lines; a step of 64 rows is a block, 8 KiB as in a K-major
// operand.
__device__ __forceinline__ u64 wgmma_descriptor_row_major(const void* operand) {
  return (u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{8192 >> 4} << 16) | ((smem_address(operand) & 0x3ffff) >> 4);
}

template <Major kMajor>
__device__ __forceinline__ u64 wgmma_descriptor_of(const void* operand) {
  return kMajor == Major::k ? wgmma_descriptor(operand) : wgmma_descriptor_row_major(operand);
}

// 16 k of 16-bit values.
template <Major kMajor>
constexpr u64 kDescriptorStepK16 = kMajor == Major::k ? 16 * 2 >> 4 : 16 * 128 >> 4;

template <Major kMajor>
constexpr cute::SM90::GMMA::Major kCuteMajor =
    kMajor == Major::k ? cute::SM90::GMMA::Major::K : cute::SM90::GMMA::Major::MN;

template <int kN, Major kA, Major kB>
struct WgmmaBf16;
template <Major kA, Major kB>
struct WgmmaBf16<8, kA, kB> : cute::SM90::GMMA::MMA_64x8x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<16, kA, kB> : cute::SM90::GMMA::MMA_64x16x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<32, kA, kB> : cute::SM90::GMMA::MMA_64x32x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<64, kA, kB> : cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<128, kA, kB> : cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<192, kA, kB> : cute::SM90::GMMA::MMA_64x192x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};
template <Major kA, Major kB>
struct WgmmaBf16<256, kA, kB> : cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<kCuteMajor<kA>, kCuteMajor<kB>> {};

// d[64, n] = a[64, 16] b[n, 16]^T, plus d where `accumulate`. Registers as above.
template <Major kA, Major kB, int kRegisters>
__device__ __forceinline__ void wgmma_m64k16_f32_bf16_bf16(f32 (&d)[kRegisters], u64 a, u64 b, bool accumulate) {
  using cute::SM90::GMMA::ScaleOut;
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    WgmmaBf16<2 * kRegisters, kA, kB>::fma(a, b, d[kIndex]..., accumulate ? ScaleOut::One : ScaleOut::Zero);
  }(std::make_integer_sequence<int, kRegisters>{});
}

}  // namespace glm5::ptx
