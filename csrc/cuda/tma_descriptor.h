// Tensor maps for the copy engine, encoded on the host and passed to kernels by value.
//
// The encoder is a function of the driver, found at run time: the library does not link libcuda and loads without it.
#pragma once

#include <cuda.h>

#include "core/tensor.h"
#include "cuda/launch.h"

namespace glm5::cuda {

constexpr i64 kTmaAlignment = 16;  // bytes: of the address, and of every stride but the first

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

inline EncodeTiled encode_tiled(const char* op) {
  static std::atomic<EncodeTiled> known{nullptr};
  EncodeTiled encode = known.load(std::memory_order_relaxed);
  if (encode != nullptr) return encode;
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found), op,
        "looking up cuTensorMapEncodeTiled");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found), op,
        "looking up cuTensorMapEncodeTiled");
#endif
  require(found == cudaDriverEntryPointSuccess && entry != nullptr, op,
          " needs a driver that knows cuTensorMapEncodeTiled (CUDA 12.0 or later)");
  encode = reinterpret_cast<EncodeTiled>(entry);
  known.store(encode, std::memory_order_relaxed);
  return encode;
}

// A matrix as the copy engine sees it: `rows` of `columns` elements, one box of `box_rows` x `box_columns` per copy,
// from `box_batches` matrices where there is a third dimension.
struct TmaMatrix {
  CUtensorMapDataType dtype;
  i64 element_bytes;
  const void* data;
  i64 rows, columns;
  i64 row_stride;  // in elements
  int box_rows, box_columns;
  CUtensorMapSwizzle swizzle;
  i64 batches = 0;       // 0: the map has two dimensions; else a third one
  i64 batch_stride = 0;  // in elements
  int box_batches = 1;
};

// name is the argument's, for the message.
inline CUtensorMap tma_descriptor(const TmaMatrix& matrix, const char* op, const char* name) {
  const auto address = reinterpret_cast<std::uintptr_t>(matrix.data);
  require(address % kTmaAlignment == 0, op, ": ", name, " must start at a multiple of ", kTmaAlignment,
          " bytes on CUDA");
  // The stride of a single row is never used, and callers may have left anything in it.
  const i64 used_stride = matrix.rows == 1 ? round_up(matrix.columns, kTmaAlignment) : matrix.row_stride;
  const i64 stride_bytes = used_stride * matrix.element_bytes;
  require(stride_bytes > 0 && stride_bytes % kTmaAlignment == 0, op, ": the stride of ", name,
          " must be a positive multiple of ", kTmaAlignment / matrix.element_bytes, " elements on CUDA, got ",
          matrix.row_stride);
  // Nor is that of a single batch. A batch may be closer than a row: heads of one token lie side by side.
  const i64 batch_bytes = matrix.batches > 1 ? matrix.batch_stride * matrix.element_bytes : stride_bytes;
  require(batch_bytes > 0 && batch_bytes % kTmaAlignment == 0, op, ": the batch stride of ", name,
          " must be a positive multiple of ", kTmaAlignment / matrix.element_bytes, " elements on CUDA, got ",
          matrix.batch_stride);
  const cuuint64_t lengths[] = {static_cast<cuuint64_t>(matrix.columns), static_cast<cuuint64_t>(matrix.rows),
                                static_cast<cuuint64_t>(matrix.batches)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(stride_bytes), static_cast<cuuint64_t>(batch_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(matrix.box_columns), static_cast<cuuint32_t>(matrix.box_rows),
                            static_cast<cuuint32_t>(matrix.box_batches)};
  const cuuint32_t steps[] = {1, 1, 1};
  const int rank = matrix.batches == 0 ? 2 : 3;
  CUtensorMap map;
  const CUresult status = encode_tiled(op)(&map, matrix.dtype, rank, const_cast<void*>(matrix.data), lengths, strides,
                                           box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, matrix.swizzle,
                                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  require(status == CUDA_SUCCESS, op, ": the driver refused the tensor map of ", name, " (CUresult ",
          static_cast<int>(status), ")");
  return map;
}

}  // namespace glm5::cuda
