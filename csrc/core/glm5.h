// The numbers of GLM-5 that kernels share. Source: the model's config.json and its FP8 checkpoints.
#pragma once

#include "core/tensor.h"

namespace glm5 {

constexpr i64 kFp8Group = 128;      // values that share a scale along k, and rows of a weight block
constexpr f32 kE4m3Max = 448.0f;    // largest finite e4m3 value
constexpr i64 kScaleRowsPad = 4;    // column-major scales: rows padded to 16 bytes, as TMA strides must be
constexpr i64 kPage = 64;           // tokens in a page of a cache
constexpr f32 kCacheAmaxFloor = 1e-4f;  // of the scales in a cache, as quantize_fp8's default

}  // namespace glm5
