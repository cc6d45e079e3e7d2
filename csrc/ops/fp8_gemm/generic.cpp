// The summation tree spelled out, one multiply-add at a time: the answer that the other files must give to the bit.
#include "core/fp8.h"
#include "cpu/float_environment.h"
#include "cpu/gemm.h"
#include "ops/fp8_gemm/fp8_gemm.h"

namespace glm5::generic {
namespace {

// part(g) of one result.
f32 part_of(const f32* a, const f32* b) {
  f32 part = 0.0f;
  for (i64 step = 0; step < cpu::kGemmBlock; step += cpu::kGemmStep) {
    f32 even = 0.0f, odd = 0.0f;
    for (i64 k = step; k < step + cpu::kGemmStep; k += 2) {
      even = __builtin_fmaf(a[k], b[k], even);
      odd = __builtin_fmaf(a[k + 1], b[k + 1], odd);
    }
    part += even + odd;
  }
  return part;
}

// A block of one row as f32, padded with zeros.
void decode(const e4m3* from, i64 values, f32* to) {
  for (i64 k = 0; k < cpu::kGemmBlock; ++k) to[k] = k < values ? to_f32(from[k]) : 0.0f;
}

template <class T>
void store(T* out, f32 total, bool accumulate) {
  const f32 sum = accumulate ? to_f32(*out) + total : total;
  if constexpr (sizeof(T) == 4) {
    *out = sum;
  } else {
    *out = to_bf16(sum);
  }
}

f32 b_scale(const Fp8GemmArgs& args, i64 column, i64 group) {
  return *args.b_scales.at(args.b_scales_per_row ? column : column / kFp8Group, group);
}

void multiply_item(const Fp8GemmArgs& args, const cpu::GemmItem& item, const cpu::GemmWorkspace& workspace) {
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  for (i64 i = 0; i < item.rows * cpu::kGemmTile; ++i) workspace.totals[i] = 0.0f;
  for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g) {
    for (i64 j = 0; j < item.columns; ++j) {
      const i64 column = item.first_column + j;
      decode(args.b.at(column, g * kFp8Group), smaller(kFp8Group, k - g * kFp8Group), workspace.panel);
      const f32 column_scale = b_scale(args, column, g);
      for (i64 i = 0; i < item.rows; ++i) {
        const i64 row = item.first_row + i;
        f32& total = workspace.totals[i * cpu::kGemmTile + j];
        const f32 scale = *args.a_scales.at(row, g) * column_scale;
        total = __builtin_fmaf(scale, part_of(packed.at(row, g), workspace.panel), total);
      }
    }
  }
  for (i64 i = 0; i < item.rows; ++i) {
    for (i64 j = 0; j < item.columns; ++j) {
      const i64 row = item.first_row + i, column = item.first_column + j;
      const f32 total = workspace.totals[i * cpu::kGemmTile + j];
      if (args.out.dtype == Float::f32) {
        store(args.out.as<f32>().at(row, column), total, args.accumulate);
      } else {
        store(args.out.as<bf16>().at(row, column), total, args.accumulate);
      }
    }
  }
}

}  // namespace

void fp8_gemm_pack(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  const cpu::PackedRows packed{reinterpret_cast<f32*>(workspace.packed), m, cpu::gemm_padded_k(k)};
  for (i64 row = begin * cpu::kGemmPackRows; row < smaller(m, end * cpu::kGemmPackRows); ++row) {
    for (i64 g = 0; g < ceil_div(k, kFp8Group); ++g)
      decode(args.a.at(row, g * kFp8Group), smaller(kFp8Group, k - g * kFp8Group), packed.at(row, g));
  }
  cpu::restore_floats(before);
}

void fp8_gemm_multiply(const Fp8GemmArgs& args, i64 begin, i64 end, i64 thread) {
  const cpu::FloatState before = cpu::use_default_floats();
  const i64 m = args.a.shape[0], n = args.b.shape[0], k = args.a.shape[1];
  const cpu::GemmWorkspace workspace(args.workspace, m, k, thread);
  for (i64 i = begin; i < end; ++i) multiply_item(args, {i, m, n, cpu::kGemmVectorRows}, workspace);
  cpu::restore_floats(before);
}

}  // namespace glm5::generic
