// The summation trees spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "core/fp8.h"
#include "cpu/float_environment.h"
#include "cpu/gemm.h"
#include "ops/gemm/gemm.h"

namespace glm5::generic {
namespace {

cpu::FloatState use_floats_of(const GemmArgs& args) {
  return args.a.dtype == Float::f32 ? cpu::use_default_floats() : cpu::use_flushing_floats();
}

f32 load(const FloatTensor<3>& from, i64 row, i64 k) {
  return from.dtype == Float::f32 ? *from.as<f32>().at(0, row, k) : to_f32(*from.as<bf16>().at(0, row, k));
}

// 128 k of a row from first_k on, padded with zeros.
void load_block(const FloatTensor<3>& from, i64 row, i64 first_k, f32* to) {
  for (i64 i = 0; i < cpu::kGemmBlock; ++i) to[i] = first_k + i < from.shape[2] ? load(from, row, first_k + i) : 0.0f;
}

f32 add_steps(const f32* a, const f32* b, i64 k_end, f32 total) {
  for (i64 step = 0; step < k_end; step += cpu::kGemmStep) {
    f32 even = 0.0f, odd = 0.0f;
    for (i64 k = step; k < step + cpu::kGemmStep; k += 2) {
      even = __builtin_fmaf(a[k], b[k], even);
      odd = __builtin_fmaf(a[k + 1], b[k + 1], odd);
    }
    total += even + odd;
  }
  return total;
}

f32 add_part(const f32* a, const f32* b, i64 k_end, f32 total) {
  f32 part = 0.0f;
  for (i64 k = 0; k < k_end; ++k) part = __builtin_fmaf(a[k], b[k], part);
  return total + part;
}

void store(const FloatTensor<3>& out, i64 row, i64 column, f32 total, bool accumulate) {
  if (out.dtype == Float::f32) {
    f32* value = out.as<f32>().at(0, row, column);
    *value = accumulate ? *value + total : total;
  } else {
    bf16* value = out.as<bf16>().at(0, row, column);
    *value = to_bf16(accumulate ? to_f32(*value) + total : total);
  }
}

void multiply_item(const GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[1], k = args.a.shape[2];
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  const auto add = args.a.dtype == Float::f32 ? add_part : add_steps;
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; ++i) workspace.totals[i] = 0.0f;
  for (i64 block = 0; block < ceil_div(k, cpu::kGemmBlock); ++block) {
    const i64 first_k = block * cpu::kGemmBlock, k_end = smaller(cpu::kGemmBlock, k - first_k);
    for (i64 j = 0; j < item.columns; ++j) {
      load_block(args.b, item.first_column + j, first_k, workspace.panel);
      for (i64 i = 0; i < item.rows; ++i) {
        f32& total = workspace.totals[i * cpu::kGemmTile + j];
        total = add(packed.at(item.first_row + i, block), workspace.panel, k_end, total);
      }
    }
  }
  for (i64 i = 0; i < item.rows; ++i) {
    const f32* totals = workspace.totals + i * cpu::kGemmTile;
    for (i64 j = 0; j < item.columns; ++j)
      store(args.out, item.first_row + i, item.first_column + j, totals[j], args.accumulate);
  }
}

}  // namespace

void gemm_pack(const GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const i64 m = args.a.shape[1], k = args.a.shape[2];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  for (i64 row = begin * cpu::kGemmPackRows; row < smaller(m, end * cpu::kGemmPackRows); ++row) {
    for (i64 block = 0; block < ceil_div(k, cpu::kGemmBlock); ++block)
      load_block(args.a, row, block * cpu::kGemmBlock, packed.at(row, block));
  }
}

void gemm_multiply(const GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = use_floats_of(args);
  const i64 m = args.a.shape[1], n = args.b.shape[1], k = args.a.shape[2];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  for (i64 i = begin; i < end; ++i) multiply_item(args, {i, m, n, cpu::kGemmVectorRows}, workspace);
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
