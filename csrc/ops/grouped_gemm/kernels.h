// The phases that every instruction set gives grouped_gemm, for one product after another: pack(task, begin, end) and
// multiply(task, begin, end, thread) for bf16, for e4m3, and for bf16 with e4m3 weights.
#pragma once

#include "ops/grouped_gemm/groups.h"

namespace glm5::grouped_gemm {

namespace {  // their lambdas would be weak symbols

template <class Product, class Args>
GLM5_INLINE void pack_groups(const Groups<Args>& work, i64 begin, i64 end) {
  for_pack_items(work, begin, end, [](const cpu::GemmTask<Args>& task, i64 first, i64 last) [[gnu::always_inline]] {
    Product::pack(task, first, last);
  });
}

template <class Product, class Args>
GLM5_INLINE void multiply_groups(const Groups<Args>& work, i64 begin, i64 end, i64 thread) {
  for_pieces(work, begin, end, [&](const cpu::GemmTask<Args>& task, i64 first, i64 last) [[gnu::always_inline]] {
    Product::multiply(task, first, last, thread);
  });
}

}  // namespace

// A Product of kernels as cpu/gemm.h wants them.
template <class Kernel, class Args>
struct ItemProduct {
  GLM5_INLINE static void pack(const cpu::GemmTask<Args>& task, i64 begin, i64 end) {
    cpu::pack_items<Kernel>(task, begin, end);
  }
  GLM5_INLINE static void multiply(const cpu::GemmTask<Args>& task, i64 begin, i64 end, i64 thread) {
    cpu::multiply_items<Kernel>(task, begin, end, thread);
  }
};

}  // namespace glm5::grouped_gemm
