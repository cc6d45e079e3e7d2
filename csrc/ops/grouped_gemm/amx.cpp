// grouped_gemm with AMX: the tiles of gemm and fp8_gemm, expert by expert.
#include "cpu/gemm_fp8_tiles.h"
#include "ops/grouped_gemm/kernels.h"

namespace glm5::amx {
namespace {

struct Plain {
  GLM5_INLINE static void pack(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end) {
    gemm_plain_tiles::pack(task, begin, end);
  }
  GLM5_INLINE static void multiply(const cpu::GemmTask<GemmArgs>& task, i64 begin, i64 end, i64 thread) {
    gemm_plain_tiles::multiply(task, begin, end, thread);
  }
};
template <class A>
struct Scaled {
  GLM5_INLINE static void pack(const cpu::GemmTask<ScaledGemmArgs<A>>& task, i64 begin, i64 end) {
    gemm_fp8_tiles::pack(task, begin, end);
  }
  GLM5_INLINE static void multiply(const cpu::GemmTask<ScaledGemmArgs<A>>& task, i64 begin, i64 end, i64 thread) {
    gemm_fp8_tiles::multiply(task, begin, end, thread);
  }
};

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

}  // namespace glm5::amx
