#include "wgmma_registers.h"

#include <algorithm>
#include <unordered_map>

#include "async_state.h"
#include "report.h"

namespace glm5::emulator {

// A register that an instruction names, and the wgmma of the program that use it.
struct RegisterTouch {
  u32 row;
  std::string_view name;
  bool is_written;
  std::vector<u32> sums_of, a_of;  // by WgmmaForm::index
};

struct TouchedRegisters {
  Executor execute;  // the instruction's own
  bool is_copy;      // one register to another: registers[0] and [1], in whatever order
  std::vector<RegisterTouch> registers;
};

namespace {

struct Users {
  std::vector<u32> sums_of, a_of;
};
using UsersOfRows = std::unordered_map<u32, Users>;

bool is_register(const NamedRow& name) {
  return name.bytes != 0 && name.row.region == static_cast<u32>(Region::registers);
}

template <class F>
void each_name(const Program& program, size_t pc, F f) {
  const auto& names = program.names;
  const size_t end = pc + 1 < program.places.size() ? program.places[pc + 1].first_name : names.size();
  for (size_t i = program.places[pc].first_name; i < end; ++i)
    if (is_register(names[i])) f(names[i]);
}

std::vector<NamedRow> registers_of(const Program& program, size_t pc) {
  std::vector<NamedRow> found;
  each_name(program, pc, [&](const NamedRow& name) { found.push_back(name); });
  return found;
}

// mov %f1, %f2, whatever its guard.
bool is_copy(const Program& program, size_t pc) {
  const std::string_view text = program.places[pc].text;
  const size_t mnemonic = text.starts_with('@') ? text.find_first_not_of(" \t", text.find_first_of(" \t")) : 0;
  if (mnemonic == std::string_view::npos || !text.substr(mnemonic).starts_with("mov.")) return false;
  const auto names = registers_of(program, pc);
  return names.size() == 2 && names[0].is_written != names[1].is_written && names[0].bytes == names[1].bytes;
}

UsersOfRows users_of_rows(Program& program) {
  UsersOfRows users;
  for (Instruction& in : program.code) {
    const WgmmaForm* form = wgmma_form_of(in);
    if (form == nullptr) continue;
    for (const Operand& sum : form->sums) users[sum.offset].sums_of.push_back(form->index);
    for (int i = 0; i < 4 && form->a_in_registers; ++i) users[form->a_registers[i].offset].a_of.push_back(form->index);
  }
  // What they are copied to carries them on.
  for (bool grows = !users.empty(); grows;) {
    grows = false;
    for (size_t pc = 0; pc < program.code.size(); ++pc) {
      if (!is_copy(program, pc)) continue;
      auto names = registers_of(program, pc);
      if (names[0].is_written) std::swap(names[0], names[1]);
      if (users.contains(names[0].row.offset)) grows |= users.try_emplace(names[1].row.offset).second;
    }
  }
  return users;
}

// The latest wgmma in flight of those listed; 0 where none is.
u32 latest(const WgmmaWarp& mine, const std::vector<u32>& forms) {
  u32 number = 0;
  for (const u32 form : forms)
    if (form < mine.issued_by_form.size()) number = std::max(number, mine.issued_by_form[form]);
  return number > mine.waited ? number : 0;
}

u32 sum_in_flight(const WgmmaWarp& mine, const RegisterTouch& touch) {
  const auto copied = mine.copied.find(touch.row);
  const u32 by_copy = copied != mine.copied.end() && copied->second > mine.waited ? copied->second : 0;
  return std::max(by_copy, latest(mine, touch.sums_of));
}

[[noreturn]] void complain(Warp& warp, const RegisterTouch& touch, const char* what, u32 number) {
  const auto place = async_of(warp).wgmma.places.find(number);
  std::ostringstream where;
  if (place != async_of(warp).wgmma.places.end()) {
    const SourceLine& source = warp.program->places[place->second].source;
    if (source.line) where << " at " << warp.program->file_of(source) << ":" << source.line;
  }
  fault(warp, -1, "wgmma", touch.is_written ? "writes " : "reads ", touch.name, ", ", what, " the wgmma", where.str(),
        ", for which this warp has not waited (wgmma.wait_group)");
}

void check(Warp& warp, const TouchedRegisters& touched) {
  WgmmaWarp& mine = async_of(warp).wgmma;
  for (const RegisterTouch& touch : touched.registers) {
    const u32 number = touch.is_written || touched.is_copy ? 0 : sum_in_flight(mine, touch);
    if (number) complain(warp, touch, "an accumulator of", number);
  }
  for (const RegisterTouch& touch : touched.registers) {
    if (!touch.is_written) continue;
    if (const u32 number = latest(mine, touch.a_of)) complain(warp, touch, "a fragment of A of", number);
    if (touched.is_copy) continue;
    if (const u32 number = latest(mine, touch.sums_of)) complain(warp, touch, "an accumulator of", number);
    mine.copied.erase(touch.row);
  }
}

void copy(Warp& warp, const TouchedRegisters& touched) {
  WgmmaWarp& mine = async_of(warp).wgmma;
  const RegisterTouch &to = touched.registers[touched.registers[0].is_written ? 0 : 1],
                      &from = touched.registers[touched.registers[0].is_written ? 1 : 0];
  const u32 number = sum_in_flight(mine, from);
  if (number == 0 && latest(mine, to.sums_of)) complain(warp, to, "an accumulator of", latest(mine, to.sums_of));
  if (number) {
    mine.copied[to.row] = number;
  } else {
    mine.copied.erase(to.row);
  }
}

Step run_touching(Warp& warp, const Instruction& in, u32 mask) {
  const TouchedRegisters& touched = *warp.program->touched_registers[warp.group->pc];
  const WgmmaWarp& mine = async_of(warp).wgmma;
  if (mine.issued > mine.waited) {
    check(warp, touched);
    if (touched.is_copy) copy(warp, touched);
  }
  return touched.execute(warp, in, mask);
}

// A wgmma: the fragments of A that it reads, and accumulators that wgmma of another shape use as well.
TouchedRegisters touched_by_wgmma(const Program& program, size_t pc, const UsersOfRows& users,
                                  const std::vector<const WgmmaForm*>& forms) {
  const WgmmaForm& own = *wgmma_form_of(program.code[pc]);
  TouchedRegisters touched{nullptr, false, {}};
  const auto is_same_shape = [&](u32 index) {
    const WgmmaForm& other = *forms[index];
    return other.n == own.n && other.sums_in_f16 == own.sums_in_f16 && other.a_element == own.a_element;
  };
  each_name(program, pc, [&](const NamedRow& name) {
    const auto found = users.find(name.row.offset);
    if (found == users.end()) return;
    RegisterTouch touch{name.row.offset, name.name, name.is_written, found->second.sums_of, {}};
    if (name.is_written) std::erase_if(touch.sums_of, is_same_shape);
    if (!name.is_written || !touch.sums_of.empty()) touched.registers.push_back(std::move(touch));
  });
  return touched;
}

}  // namespace

void watch_wgmma_registers(Program& program) {
  std::vector<const WgmmaForm*> forms;
  for (const Instruction& in : program.code) {
    const WgmmaForm* form = wgmma_form_of(in);
    if (form == nullptr) continue;
    const_cast<WgmmaForm*>(form)->index = static_cast<u32>(forms.size());  // the program's own, and not yet in use
    forms.push_back(form);
  }
  if (forms.empty()) return;
  const UsersOfRows users = users_of_rows(program);
  program.touched_registers.resize(program.code.size());
  for (size_t pc = 0; pc < program.code.size(); ++pc) {
    Instruction& in = program.code[pc];
    if (wgmma_form_of(in)) {
      program.touched_registers[pc] = program.keep(touched_by_wgmma(program, pc, users, forms));
      continue;
    }
    TouchedRegisters touched{in.execute, is_copy(program, pc), {}};
    bool touches = false;
    each_name(program, pc, [&](const NamedRow& name) {
      const auto found = users.find(name.row.offset);
      touches = touches || found != users.end();
      const Users none, &by = found == users.end() ? none : found->second;
      touched.registers.push_back({name.row.offset, name.name, name.is_written, by.sums_of, by.a_of});
    });
    if (!touches) continue;
    program.touched_registers[pc] = program.keep(std::move(touched));
    in.execute = run_touching;
  }
}

void note_wgmma_issue(Warp& warp, const WgmmaForm& form, u32 number) {
  WgmmaWarp& mine = async_of(warp).wgmma;
  for (const RegisterTouch& touch : warp.program->touched_registers[warp.group->pc]->registers) {
    const u32 other = touch.is_written ? latest(mine, touch.sums_of) : sum_in_flight(mine, touch);
    if (other) complain(warp, touch, "an accumulator of", other);
  }
  if (mine.issued_by_form.size() <= form.index) mine.issued_by_form.resize(form.index + 1);
  mine.issued_by_form[form.index] = number;
  mine.places[number] = warp.group->pc;
}

void note_wgmma_wait(Warp& warp, u32 number) {
  WgmmaWarp& mine = async_of(warp).wgmma;
  mine.waited = std::max(mine.waited, number);
  if (mine.waited < mine.issued) return;
  mine.copied.clear();
  mine.places.clear();
}

}  // namespace glm5::emulator
