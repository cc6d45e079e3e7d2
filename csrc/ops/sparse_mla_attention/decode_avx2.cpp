// sparse_mla_decode, schedule "fast", with AVX2.
#include "cpu/avx2.h"
#include "ops/sparse_mla_attention/decode_vectors.h"

namespace glm5::avx2 {

void sparse_mla_decode(const sparse_mla::DecodeTask& task, i64 begin, i64 end, i64 thread) {
  sparse_mla::decode<sparse_mla::DecodeKernel<Lanes>>(task, begin, end, thread);
}

}  // namespace glm5::avx2
