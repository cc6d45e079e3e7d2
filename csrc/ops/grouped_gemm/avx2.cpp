// grouped_gemm with AVX2: the loops of gemm and fp8_gemm, expert by expert.
#include "cpu/gemm_fp8_avx2.h"
#include "cpu/gemm_plain_vectors.h"
#include "ops/grouped_gemm/kernels.h"

namespace glm5::avx2 {
namespace {

using Plain = grouped_gemm::ItemProduct<gemm_plain_vectors::Kernel<Lanes, bf16>, GemmArgs>;
template <class A>
using Scaled = grouped_gemm::ItemProduct<gemm_fp8_vectors::Kernel<Lanes, Decoder, A>, ScaledGemmArgs<A>>;

}  // namespace

void grouped_gemm_pack(const grouped_gemm::Groups<GemmArgs>& work, i64 begin, i64 end, i64) {
  grouped_gemm::pack_groups<Plain>(work, begin, end);
}
void grouped_gemm_multiply(const grouped_gemm::Groups<GemmArgs>& work, i64 begin, i64 end, i64 thread) {
  grouped_gemm::multiply_groups<Plain>(work, begin, end, thread);
}

void grouped_gemm_pack(const grouped_gemm::Groups<ScaledGemmArgs<e4m3>>& work, i64 begin, i64 end, i64) {
  grouped_gemm::pack_groups<Scaled<e4m3>>(work, begin, end);
}
void grouped_gemm_multiply(const grouped_gemm::Groups<ScaledGemmArgs<e4m3>>& work, i64 begin, i64 end, i64 thread) {
  grouped_gemm::multiply_groups<Scaled<e4m3>>(work, begin, end, thread);
}

void grouped_gemm_pack(const grouped_gemm::Groups<ScaledGemmArgs<bf16>>& work, i64 begin, i64 end, i64) {
  grouped_gemm::pack_groups<Scaled<bf16>>(work, begin, end);
}
void grouped_gemm_multiply(const grouped_gemm::Groups<ScaledGemmArgs<bf16>>& work, i64 begin, i64 end, i64 thread) {
  grouped_gemm::multiply_groups<Scaled<bf16>>(work, begin, end, thread);
}

}  // namespace glm5::avx2
