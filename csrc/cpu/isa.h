// Which instruction set runs: what the machine has, what a caller allows, and the table of an op's implementations.
#pragma once

#include "core/tensor.h"

namespace glm5::cpu {

// Ascending: each level includes those before it.
enum class Isa : int { generic = 0, avx2 = 1, avx512 = 2, amx = 3 };

const char* name(Isa isa);

// The best level of this machine. amx: the processor has it, the operating system enabled it and granted this process
// the tile state when asked (arch_prctl); otherwise the answer is avx512 or less.
Isa detected_isa();
// Kernels above `isa` are not used from now on (process-wide; for tests, and for comparing machines).
void limit_isa(Isa isa);
// detected_isa(), or the limit where that is lower.
Isa current_isa();

// An implementation works on the items [begin, end) of its op; items are independent, so threads share them freely.
// `thread` numbers the calling thread (0 .. thread_count() - 1), for its part of a workspace.
template <class Args>
struct Implementation {
  Isa isa;
  void (*run)(const Args& args, i64 begin, i64 end, i64 thread);
};

// The same with its types forgotten.
template <>
struct Implementation<void> {
  Isa isa;
  const void* run;
};

// A door for tests: a program that executes a kernel of an instruction set this processor lacks (an interpreter of
// x86). It gets the address of an Implementation's function and its four arguments. Null: no door.
using Interpreter = void (*)(const void* kernel, const void* args, i64 begin, i64 end, i64 thread);
void interpret_isa(Isa isa, Interpreter interpreter);
Interpreter current_interpreter();

// Runs the best allowed implementation over `items`, spread over threads in pieces of at least `grain` items.
// `table` is ordered best first and ends with Isa::generic.
void run_table(const Implementation<void>* table, int entries, const void* args, i64 items, i64 grain);

template <class Args, int Entries>
void run_best(const Implementation<Args> (&table)[Entries], const Args& args, i64 items, i64 grain = 1) {
  Implementation<void> untyped[Entries];
  for (int i = 0; i < Entries; ++i) untyped[i] = {table[i].isa, reinterpret_cast<const void*>(table[i].run)};
  run_table(untyped, Entries, &args, items, grain);
}

}  // namespace glm5::cpu
