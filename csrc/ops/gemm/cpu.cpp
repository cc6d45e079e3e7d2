#include "cpu/gemm_door.h"
#include "ops/gemm/gemm.h"

namespace glm5 {

using GemmTask = cpu::GemmTask<GemmArgs>;

namespace generic {
void gemm_pack(const GemmTask&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void gemm_pack(const GemmTask&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void gemm_multiply(const GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void gemm_pack(const GemmTask&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmTask&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// AVX-512 reads what AVX2 packs.
constexpr cpu::GemmKernels<GemmTask> kKernels[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::gemm_pack, amx::gemm_multiply},
    {cpu::Isa::avx512, avx2::gemm_pack, avx512::gemm_multiply},
    {cpu::Isa::avx2, avx2::gemm_pack, avx2::gemm_multiply},
#endif
    {cpu::Isa::generic, generic::gemm_pack, generic::gemm_multiply},
};

}  // namespace

i64 gemm_workspace_bytes(i64 batch, i64 m, i64 n, i64 k) {
  return larger(cpu::gemm_workspace_bytes({batch, m, n, k, false}), cpu::gemm_workspace_bytes({batch, m, n, k, true}));
}

void gemm_cpu(const GemmArgs& given) {
  GemmArgs args = given;
  const i64 batch = args.a.shape[0], m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  require(args.a.dtype != Float::f16 && args.a.dtype == args.b.dtype, "gemm: a and b must both be bf16 or both f32");
  require(args.out.dtype != Float::f16, "gemm: out must be bf16 or f32; got f16");
  // A stride that is never taken may be anything; the kernels want one of them to be 1.
  for (FloatTensor<3>* operand : {&args.a, &args.b}) {
    for (int d = 1; d < 3; ++d) {
      if (operand->shape[d] <= 1) operand->stride[d] = 1;
    }
  }
  require(args.a.stride[1] == 1 || args.a.stride[2] == 1, "gemm: a must have unit stride along m or k; got strides ",
          args.a.stride[1], " and ", args.a.stride[2]);
  require(args.b.stride[1] == 1 || args.b.stride[2] == 1, "gemm: b must have unit stride along n or k; got strides ",
          args.b.stride[1], " and ", args.b.stride[2]);
  const bool may_use_amx = args.a.dtype != Float::f32;  // it has no f32
  cpu::run_gemm("gemm", kKernels, args, {batch, m, n, k, may_use_amx});
}

}  // namespace glm5
