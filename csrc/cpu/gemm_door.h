// The CPU door of fp8_gemm and gemm: parts, phases, and the tables of their implementations.
#pragma once

#include "cpu/gemm.h"
#include "cpu/isa.h"
#include "cpu/workspace_check.h"

namespace glm5::cpu {

struct GemmSize {
  i64 batches, m, n, k;
  bool may_use_amx;
};

inline GemmPart first_part(const GemmSize& size) {
  const bool with_amx = size.may_use_amx && current_isa() == Isa::amx;
  return gemm_part(size.batches, size.m, size.n, size.k, with_amx, thread_count());
}

inline i64 gemm_workspace_bytes(const GemmSize& size) { return gemm_workspace_size(first_part(size), thread_count()); }

// The first cache line of a workspace; gemm_workspace_size() counts 64 bytes for it.
inline u8* aligned(const Tensor<u8, 1>& workspace) {
  const i64 address = static_cast<i64>(reinterpret_cast<std::uintptr_t>(workspace.data));
  return workspace.data + (round_up(address, 64) - address);
}

// The two phases of an instruction set; a table is ordered best first.
template <class Task>
struct GemmKernels {
  using Run = void (*)(const Task& task, i64 begin, i64 end, i64 thread);
  Isa isa;
  Run pack, multiply;
};

// AMX's kernels are left out where they may not serve.
template <class Task, int Entries>
void run_phase(const GemmKernels<Task> (&table)[Entries], typename GemmKernels<Task>::Run GemmKernels<Task>::*phase,
               const Task& task, bool with_amx, i64 items, i64 grain) {
  Implementation<void> untyped[Entries];
  int entries = 0;
  for (const GemmKernels<Task>& kernels : table) {
    if (kernels.isa != Isa::amx || with_amx)
      untyped[entries++] = {kernels.isa, reinterpret_cast<const void*>(kernels.*phase)};
  }
  run_table(untyped, entries, &task, items, grain);
}

// Phase 1 brings a into the workspace, where the part wants it packed; phase 2 multiplies.
template <class Args, int Entries>
void run_gemm(const char* op, const GemmKernels<GemmTask<Args>> (&table)[Entries], const Args& args,
              const GemmSize& size) {
  using Kernels = GemmKernels<GemmTask<Args>>;
  if (size.batches == 0 || size.m == 0 || size.n == 0) return;
  check_workspace(op, args.workspace, gemm_workspace_bytes(size));
  const GemmPart first = first_part(size);
  u8* packed = aligned(args.workspace);
  GemmTask<Args> task{args, first, packed, packed + gemm_packed_bytes(first), gemm_scratch_bytes(first)};
  GemmPart& part = task.part;
  for (; part.first_batch < size.batches; part.first_batch += first.batches) {
    part.batches = smaller(first.batches, size.batches - part.first_batch);
    for (part.first_row = 0; part.first_row < size.m; part.first_row += first.rows) {
      part.rows = smaller(first.rows, size.m - part.first_row);
      if (part.is_packed) {
        const i64 grain = (i64{1} << 16) / larger(1, part.pack_item_values());
        run_phase(table, &Kernels::pack, task, part.with_amx, part.pack_items(), larger(1, grain));
      }
      run_phase(table, &Kernels::multiply, task, part.with_amx, part.items(), 1);
    }
  }
}

}  // namespace glm5::cpu
