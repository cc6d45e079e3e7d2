#include "core/error.h"
#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops/gemm/gemm.h"

namespace glm5 {

namespace generic {
void gemm_pack(const GemmArgs&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace generic

#if defined(__x86_64__)
namespace avx2 {
void gemm_pack(const GemmArgs&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx2
namespace avx512 {
void gemm_multiply(const GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace avx512
namespace amx {
void gemm_pack(const GemmArgs&, i64 begin, i64 end, i64 thread);
void gemm_multiply(const GemmArgs&, i64 begin, i64 end, i64 thread);
}  // namespace amx
#endif

namespace {

// Phase 1, items of 16 rows: the chunk of a, as f32 (AMX: bf16) in the workspace. AVX-512 reads what AVX2 writes.
// AMX has no f32: there the two tables without it serve.
constexpr cpu::Implementation<GemmArgs> kPack[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::gemm_pack},
    {cpu::Isa::avx2, avx2::gemm_pack},
#endif
    {cpu::Isa::generic, generic::gemm_pack},
};
constexpr cpu::Implementation<GemmArgs> kPackF32[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx2, avx2::gemm_pack},
#endif
    {cpu::Isa::generic, generic::gemm_pack},
};

// Phase 2, items of 64 columns for a block of rows.
constexpr cpu::Implementation<GemmArgs> kMultiply[] = {
#if defined(__x86_64__)
    {cpu::Isa::amx, amx::gemm_multiply},
    {cpu::Isa::avx512, avx512::gemm_multiply},
    {cpu::Isa::avx2, avx2::gemm_multiply},
#endif
    {cpu::Isa::generic, generic::gemm_multiply},
};
constexpr cpu::Implementation<GemmArgs> kMultiplyF32[] = {
#if defined(__x86_64__)
    {cpu::Isa::avx512, avx512::gemm_multiply},
    {cpu::Isa::avx2, avx2::gemm_multiply},
#endif
    {cpu::Isa::generic, generic::gemm_multiply},
};

i64 bytes_of(Float dtype) { return dtype == Float::f32 ? 4 : 2; }

// `rows` rows of one matrix of the batch, from `first` on.
FloatTensor<3> part_of(const FloatTensor<3>& tensor, i64 batch, i64 first, i64 rows) {
  FloatTensor<3> part = tensor;
  part.data = static_cast<u8*>(tensor.data) +
              (batch * tensor.stride[0] + first * tensor.stride[1]) * bytes_of(tensor.dtype);
  part.shape[0] = 1;
  part.shape[1] = rows;
  // A stride that is never taken may be anything; the kernels want one of them to be 1.
  if (tensor.shape[1] <= 1) part.stride[1] = 1;
  if (tensor.shape[2] <= 1) part.stride[2] = 1;
  return part;
}

void multiply_matrix(const GemmArgs& args, i64 batch) {
  const i64 m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  const bool in_f32 = args.a.dtype == Float::f32;
  const i64 item_rows = cpu::gemm_item_rows(!in_f32 && cpu::current_isa() == cpu::Isa::amx);
  const i64 pack_grain = larger(1, (i64{1} << 16) / larger(1, cpu::kGemmPackRows * k));
  for (i64 first = 0; first < m; first += cpu::kGemmChunk) {
    const i64 rows = smaller(cpu::kGemmChunk, m - first);
    GemmArgs chunk = args;
    chunk.a = part_of(args.a, batch, first, rows);
    chunk.b = part_of(args.b, batch, 0, n);
    chunk.out = part_of(args.out, batch, first, rows);
    const i64 pack_items = ceil_div(rows, cpu::kGemmPackRows);
    const i64 items = ceil_div(rows, item_rows) * ceil_div(n, cpu::kGemmTile);
    if (in_f32) {
      cpu::run_best(kPackF32, chunk, pack_items, pack_grain);
      cpu::run_best(kMultiplyF32, chunk, items);
    } else {
      cpu::run_best(kPack, chunk, pack_items, pack_grain);
      cpu::run_best(kMultiply, chunk, items);
    }
  }
}

}  // namespace

i64 gemm_workspace_bytes(i64 m, i64, i64 k) { return cpu::gemm_workspace_size(m, k, cpu::thread_count()); }

void gemm_cpu(const GemmArgs& args) {
  const i64 batches = args.a.shape[0], m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  require(args.a.dtype != Float::f16 && args.a.dtype == args.b.dtype, "gemm: a and b must both be bf16 or both f32");
  require(args.out.dtype != Float::f16, "gemm: out must be bf16 or f32; got f16");
  require(args.a.stride[1] == 1 || args.a.stride[2] == 1 || m <= 1 || k <= 1,
          "gemm: a must have unit stride along m or k; got strides ", args.a.stride[1], " and ", args.a.stride[2]);
  require(args.b.stride[1] == 1 || args.b.stride[2] == 1 || n <= 1 || k <= 1,
          "gemm: b must have unit stride along n or k; got strides ", args.b.stride[1], " and ", args.b.stride[2]);
  if (batches == 0 || m == 0 || n == 0) return;
  const i64 needed = gemm_workspace_bytes(m, n, k);
  require(args.workspace.shape[0] >= needed, "gemm: workspace must be u8[", needed, "] or longer for ",
          cpu::thread_count(), " threads; got u8[", args.workspace.shape[0], "]");
  for (i64 p = 0; p < batches; ++p) multiply_matrix(args, p);
}

}  // namespace glm5
