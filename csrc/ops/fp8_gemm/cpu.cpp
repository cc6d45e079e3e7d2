#include "cpu/gemm_door.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5 {

using Fp8GemmTask = cpu::GemmTask<Fp8GemmArgs>;

namespace generic {
void fp8_gemm_pack(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void fp8_gemm_pack(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void fp8_gemm_multiply(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void fp8_gemm_pack(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// AVX-512 reads what AVX2 packs.
constexpr cpu::GemmKernels<Fp8GemmTask> kKernels[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::fp8_gemm_pack, amx::fp8_gemm_multiply},
    {cpu::Isa::avx512, avx2::fp8_gemm_pack, avx512::fp8_gemm_multiply},
    {cpu::Isa::avx2, avx2::fp8_gemm_pack, avx2::fp8_gemm_multiply},
#endif
    {cpu::Isa::generic, generic::fp8_gemm_pack, generic::fp8_gemm_multiply},
};

}  // namespace

i64 fp8_gemm_workspace_bytes(i64 m, i64 n, i64 k) { return cpu::gemm_workspace_bytes({1, m, n, k, true}); }

void fp8_gemm_cpu(const Fp8GemmArgs& args) {
  require(args.out.dtype != Float::f16, "fp8_gemm: out must be bf16 or f32; got f16");
  cpu::run_gemm("fp8_gemm", kKernels, args, {1, args.a.shape[0], args.b.shape[0], args.a.shape[1], true});
}

}  // namespace glm5
