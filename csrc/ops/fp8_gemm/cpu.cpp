#include "core/error.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5 {

namespace generic {
void fp8_gemm_pack(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void fp8_gemm_pack(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void fp8_gemm_multiply(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void fp8_gemm_pack(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
void fp8_gemm_multiply(const Fp8GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// Phase 1, items of 16 rows: the chunk of a, decoded into the workspace. AVX-512 reads what AVX2 writes.
constexpr cpu::Implementation<Fp8GemmArgs> kPack[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::fp8_gemm_pack},
    {cpu::Isa::avx2, avx2::fp8_gemm_pack},
#endif
    {cpu::Isa::generic, generic::fp8_gemm_pack},
};

// Phase 2, items of 64 columns for a block of rows.
constexpr cpu::Implementation<Fp8GemmArgs> kMultiply[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::fp8_gemm_multiply},
    {cpu::Isa::avx512, avx512::fp8_gemm_multiply},
    {cpu::Isa::avx2, avx2::fp8_gemm_multiply},
#endif
    {cpu::Isa::generic, generic::fp8_gemm_multiply},
};

// The same product for `rows` rows from `first` on.
Fp8GemmArgs rows_of(const Fp8GemmArgs& args, i64 first, i64 rows) {
  Fp8GemmArgs chunk = args;
  const i64 out_bytes = args.out.dtype == Float::f32 ? 4 : 2;
  chunk.a.data = args.a.at(first, 0);
  chunk.a_scales.data = args.a_scales.at(first, 0);
  chunk.out.data = static_cast<u8*>(args.out.data) + first * args.out.stride[0] * out_bytes;
  chunk.a.shape[0] = chunk.a_scales.shape[0] = chunk.out.shape[0] = rows;
  return chunk;
}

}  // namespace

i64 fp8_gemm_workspace_bytes(i64 m, i64, i64 k) { return cpu::gemm_workspace_size(m, k, cpu::thread_count()); }

void fp8_gemm_cpu(const Fp8GemmArgs& args) {
  const i64 m = args.a.shape[0], n = args.b.shape[0], k = args.a.shape[1];
  require(args.out.dtype != Float::f16, "fp8_gemm: out must be bf16 or f32; got f16");
  if (m == 0 || n == 0) return;
  const i64 needed = fp8_gemm_workspace_bytes(m, n, k);
  require(args.workspace.shape[0] >= needed, "fp8_gemm: workspace must be u8[", needed, "] or longer for ",
          cpu::thread_count(), " threads; got u8[", args.workspace.shape[0], "]");
  const i64 pack_grain = larger(1, (i64{1} << 16) / larger(1, cpu::kGemmPackRows * k));
  for (i64 first = 0; first < m; first += cpu::kGemmChunk) {
    const Fp8GemmArgs chunk = rows_of(args, first, smaller(cpu::kGemmChunk, m - first));
    const i64 rows = chunk.a.shape[0], item_rows = cpu::gemm_item_rows(cpu::current_isa() == cpu::Isa::amx);
    const i64 items = ceil_div(rows, item_rows) * ceil_div(n, cpu::kGemmTile);
    cpu::run_best(kPack, chunk, ceil_div(rows, cpu::kGemmPackRows), pack_grain);
    cpu::run_best(kMultiply, chunk, items);
  }
}

}  // namespace glm5
