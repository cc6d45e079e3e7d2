// grouped_gemm spelled out: one product after another.
#include "cpu/gemm_generic.h"
#include "ops/grouped_gemm/kernels.h"

namespace glm5::generic {
namespace {

using Plain = grouped_gemm::ItemProduct<PlainKernel<bf16>, GemmArgs>;
template <class A>
using Scaled = grouped_gemm::ItemProduct<ScaledKernel<A>, ScaledGemmArgs<A>>;

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

}  // namespace glm5::generic
