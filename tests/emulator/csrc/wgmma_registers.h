// Registers that a wgmma under way still reads or writes: its accumulators, and the fragments of A.
//
// "Accessing the registers of a wgmma.mma_async without a wgmma.wait_group that waits for it is undefined" (PTX ISA
// 9.7.15.7.3). Here: reading or writing an accumulator, and writing a fragment of A, before the warp has waited. Left
// alone are wgmma that go on with the same accumulators, and mov from one register to another, which compilers make of
// nothing and which takes what is under way along.
#pragma once

#include <vector>

#include "program.h"
#include "wgmma_math.h"

namespace glm5::emulator {

// The decoded form of a wgmma.mma_async.
struct WgmmaForm {
  MatrixElement a_element, b_element;
  bool sums_in_f16 = false, is_integer = false, saturates = false;
  bool a_in_registers = false, a_is_mn_major = false, b_is_mn_major = false, negates_a = false, negates_b = false;
  int n = 0;
  Operand a_registers[4], a, b, accumulate;
  std::vector<Operand> sums;
  u32 index = 0;  // among the program's wgmma
};
const WgmmaForm* wgmma_form_of(const Instruction& in);  // null for any other instruction

// Prepares a program whose instructions are decoded: those that touch registers of a wgmma are checked before they run.
void watch_wgmma_registers(Program& program);
// A warp issues the current instruction, a wgmma, as its `number`-th.
void note_wgmma_issue(Warp& warp, const WgmmaForm& form, u32 number);
// It has waited for those up to `number`.
void note_wgmma_wait(Warp& warp, u32 number);

}  // namespace glm5::emulator
