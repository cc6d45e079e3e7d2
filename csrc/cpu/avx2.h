// The AVX2 toolbox: what two kernels share. Always inlined and without the standard library, so that no object file
// compiled for AVX2 defines a symbol that the linker could choose for another.
#pragma once

#include <immintrin.h>

#include "core/tensor.h"

namespace glm5::avx2 {

// Vectors i and i + 8 interleaved byte by byte, in each half. Four of these turn 16 rows of 16 bytes.
GLM5_INLINE void interleave_bytes(const __m256i (&in)[16], __m256i (&out)[16]) {
  for (int i = 0; i < 8; ++i) {
    out[2 * i] = _mm256_unpacklo_epi8(in[i], in[i + 8]);
    out[2 * i + 1] = _mm256_unpackhi_epi8(in[i], in[i + 8]);
  }
}

// Transposes two matrices of 16 x 16 bytes, one in each half of the vectors.
GLM5_INLINE void transpose_bytes(__m256i (&matrix)[16]) {
  __m256i other[16];
  interleave_bytes(matrix, other);
  interleave_bytes(other, matrix);
  interleave_bytes(matrix, other);
  interleave_bytes(other, matrix);
}

}  // namespace glm5::avx2
