// sparse_mla_attention with AVX-512 and its gradient.
#include "cpu/avx512.h"
#include "ops/sparse_mla_attention/bwd_vectors.h"

namespace glm5::avx512 {

void sparse_mla_attention(const sparse_mla::Task& task, i64 begin, i64 end, i64 thread) {
  sparse_mla::attend<sparse_mla::Kernel<Lanes>>(task, begin, end, thread);
}

void sparse_mla_attention_bwd(const sparse_mla::Block& block, i64 begin, i64 end, i64 thread) {
  sparse_mla::differentiate<sparse_mla::BwdKernel<Lanes>>(block, begin, end, thread);
}

}  // namespace glm5::avx512
