"""One interpreted processor in 64-bit user mode, and the smallest operating system under it.

Every exception of the guest enters a handler of two or three instructions, the first of which is a hook into Python: a
page fault maps the page, an invalid opcode may be AMX, everything else ends the run with a GuestFault.
"""

import ctypes
import functools
import threading
import time

from . import core, symbols, tiles
from .memory import NO_EXECUTE, PAGE, PRESENT, WRITABLE, Memory, anonymous_pages

MOST_INSTRUCTIONS = 2**31 - 2  # what the counter holds
_RETURN = 0xDEAD000  # a kernel returns to this unmapped address, and the fetch from there ends the run
_STACK_PAGES = 1024
_KERNEL_CODE, _USER_DATA, _USER_CODE, _TASK = 0x08, 0x2B, 0x33, 0x40
_VECTORS = 32
_WITH_ERROR_CODE = {8, 10, 11, 12, 13, 14, 17, 21}
_INVALID_OPCODE, _PAGE_FAULT = 6, 14
_NAMES = {
    0: "#DE divide error", 1: "#DB debug", 3: "#BP breakpoint", 6: "#UD invalid opcode", 7: "#NM no device",
    8: "#DF double fault", 12: "#SS stack fault", 13: "#GP general protection", 16: "#MF x87 error",
    17: "#AC alignment", 19: "#XM floating-point exception",
}  # fmt: skip
_GET_FS, _ARCH_PRCTL = 0x1003, 158


class GuestFault(RuntimeError):
    """A kernel did what a processor refuses, or ran past a limit."""


class _Frame(ctypes.Structure):
    """What the processor pushes for an exception; `error` only for those that have a code."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("error", "rip", "cs", "rflags", "rsp", "ss")]


class Machine:
    """The core's one processor: there is one of these in a process (`the_machine`)."""

    def __init__(self):
        self.core = core.open_core()
        self._cpu = self.core.bochscpu_cpu_new(0)
        self.isa, self.error, self.instructions = "", None, 0
        self.memory = Memory(self.core)
        self.tiles = tiles.Tiles(self.memory.allows)
        self._kernel = 0
        self._build_system()
        self._build_hooks()

    def run(
        self,
        isa: str,
        kernel: int,
        arguments: tuple[int, ...],
        instruction_limit: int = MOST_INSTRUCTIONS,
        seconds: float = 120.0,
    ) -> None:
        """Calls the function at `kernel` with up to four integers, as the System V convention passes them."""
        self.isa, self._kernel, self.error = isa, kernel, None
        self.memory.refresh()
        self.tiles.release()
        self._reset_registers(kernel, arguments)
        self._libc.sem_init(self._count, 0, 0)
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done, instruction_limit, seconds), daemon=True)
        watch.start()
        try:
            self.core.bochscpu_cpu_run(self._cpu, self._hook_list)
        finally:
            done.set()
            watch.join()
        self.instructions = self._count[0]
        if self.error is not None:
            raise self.error

    def _build_system(self) -> None:
        """Descriptor tables, exception handlers and two stacks."""
        tables, interrupts, handlers, kernel_stack = (anonymous_pages(1) for _ in range(4))
        descriptors = (ctypes.c_uint64 * 16).from_address(tables)
        descriptors[_KERNEL_CODE >> 3] = 0x00AF9B000000FFFF
        descriptors[_USER_DATA >> 3] = 0x00CFF3000000FFFF
        descriptors[_USER_CODE >> 3] = 0x00AFFB000000FFFF
        self._task = tables + PAGE // 2
        top = kernel_stack + PAGE
        ctypes.c_uint64.from_address(self._task + 4).value = top  # the stack pointer of ring 0
        gates = (ctypes.c_uint64 * (2 * _VECTORS)).from_address(interrupts)
        for vector in range(_VECTORS):
            handler = handlers + 16 * vector
            # invlpg (%rsp): the cheapest instruction with a hook; add $8, %rsp drops the error code; iretq.
            code = bytes.fromhex("0f013c24") + bytes.fromhex("4883c408") * (vector in _WITH_ERROR_CODE)
            ctypes.memmove(handler, code + bytes.fromhex("48cf"), len(code) + 2)
            low, high = handler & 0xFFFF, (handler >> 16) & 0xFFFF
            gates[2 * vector] = low | _KERNEL_CODE << 16 | 0x8E00 << 32 | high << 48
            gates[2 * vector + 1] = handler >> 32
        self._tables, self._interrupts, self._handlers = tables, interrupts, handlers
        self._frame = _Frame.from_address(top - ctypes.sizeof(_Frame))
        for page in (tables, interrupts, kernel_stack):
            self.memory.add_system_page(page, PRESENT | WRITABLE | NO_EXECUTE)
        self.memory.add_system_page(handlers, PRESENT)
        self._libc = ctypes.CDLL(None)
        self._libc.syscall.restype = ctypes.c_long
        stack = anonymous_pages(_STACK_PAGES)
        self._libc.mprotect(ctypes.c_void_p(stack), ctypes.c_size_t(PAGE), 0)  # an overflow must fault
        self._stack_top = stack + _STACK_PAGES * PAGE - 64

    def _build_hooks(self) -> None:
        self._count = (ctypes.c_uint32 * 16)()
        self._tlb_hook = core.TlbHook(self._trap)
        self._hlt_hook = core.HltHook(lambda _context, _cpu: self._stop(self._fault("the processor shut down")))
        self._missing_page = core.MissingPage(
            lambda address: self._stop(self._fault(f"no guest-physical page {address:#x}"))
        )
        self.core.bochscpu_mem_missing_page(self._missing_page)
        hooks = core.Hooks(
            ctx=ctypes.addressof(self._count),
            tlb_cntrl=ctypes.cast(self._tlb_hook, ctypes.c_void_p),
            hlt=ctypes.cast(self._hlt_hook, ctypes.c_void_p),
            # Counts instructions without a line of Python: sem_post adds one to the integer that it is given.
            before_execution=ctypes.cast(self._libc.sem_post, ctypes.c_void_p),
        )
        self._hooks = hooks
        self._hook_list = (ctypes.c_void_p * 2)(ctypes.addressof(hooks), None)

    def _reset_registers(self, kernel: int, arguments: tuple[int, ...]) -> None:
        c = self.core
        c.cpu_set_cr0(0, 0x80050033)  # PG AM WP NE ET MP PE
        c.cpu_set_cr3(0, self.memory.root)
        c.cpu_set_cr4(0, 0x40620)  # OSXSAVE OSXMMEXCPT OSFXSR PAE
        c.cpu_set_efer(0, 0xD00)  # NXE LMA LME; without SCE a system call is an invalid opcode
        c.cpu_set_xcr0(0, 0xE7)  # x87, SSE, AVX, AVX-512; the core has no tiles to enable
        thread_pointer = ctypes.c_uint64()
        self._libc.syscall(_ARCH_PRCTL, _GET_FS, ctypes.byref(thread_pointer))
        for segment in (core.ES, core.SS, core.DS, core.FS, core.GS):
            base = thread_pointer.value if segment == core.FS else 0
            c.cpu_set_seg(0, segment, 1, _USER_DATA, base, 0xFFFFFFFF, 0xC0F3)
        c.cpu_set_seg(0, core.CS, 1, _USER_CODE, 0, 0xFFFFFFFF, 0xA0FB)
        c.cpu_set_tr(0, 1, _TASK, self._task, 0x67, 0x8B)
        c.cpu_set_gdtr(0, self._tables, 127)
        c.cpu_set_idtr(0, self._interrupts, 16 * _VECTORS - 1)
        c.cpu_set_fp_cw(0, 0x37F)
        c.cpu_set_fp_tw(0, 0xFFFF)
        c.cpu_set_mxcsr(0, 0x1F80)
        c.cpu_set_eflags(0, 2)
        for register, value in zip((core.RDI, core.RSI, core.RDX, core.RCX), arguments, strict=False):
            c.cpu_set_reg64(0, register, value % 2**64)
        stack = self._stack_top - 8
        ctypes.c_uint64.from_address(stack).value = _RETURN
        c.bochscpu_cpu_set_rsp(self._cpu, stack)
        c.bochscpu_cpu_set_rip(self._cpu, kernel)
        c.cpu_set_mode(0)  # forgets translations and works out the mode

    def _trap(self, _context: int, _cpu: int, what: int, _value: int) -> None:
        # An exception must not leave a callback of ctypes: it is stored, and the run ends.
        try:
            handler = self.core.cpu_get_pc(0) - self._handlers
            if what == core.INVLPG and 0 <= handler < 16 * _VECTORS:
                self._handle(handler // 16)
        except BaseException as error:
            self._stop(error)

    def _handle(self, vector: int) -> None:
        frame = self._frame
        if vector == _PAGE_FAULT:
            self._handle_page_fault(self.core.cpu_get_cr2(0), frame)
        elif vector == _INVALID_OPCODE and self.isa == "amx":
            self._handle_invalid_opcode(frame)
        else:
            self._stop(self._fault(_NAMES.get(vector, f"exception {vector}")))

    def _handle_page_fault(self, address: int, frame: _Frame) -> None:
        present, write, fetch = (bool(frame.error & bit) for bit in (1, 2, 16))
        if address == frame.rip == _RETURN:
            self.core.bochscpu_cpu_stop(self._cpu)
        elif present or not self.memory.map_touched(address):
            kind = "execution" if fetch else "write" if write else "read"
            place = f"the {'protected' if present else 'unmapped'} address {address:#x}"
            self._stop(self._fault(f"#PF {kind} of {place}"))

    def _handle_invalid_opcode(self, frame: _Frame) -> None:
        try:
            instruction = tiles.decode(self._code_at(frame.rip))
            next_rip = frame.rip + instruction.length
            self.tiles.execute(instruction, self._register, next_rip)
            frame.rip = next_rip
        except tiles.InvalidOpcode as refusal:
            self._stop(self._fault(f"{_NAMES[_INVALID_OPCODE]} ({refusal})"))
        except tiles.BadAddress as bad:
            self._stop(self._fault(f"#PF tile {'write' if bad.write else 'read'} of the address {bad.address:#x}"))

    def _register(self, number: int) -> int:
        return self._frame.rsp if number == core.RSP else self.core.cpu_get_reg64(0, number)

    def _code_at(self, address: int) -> bytes:
        size = next((n for n in (15, 10, 5) if self.memory.allows(address, n, False)), 0)
        return ctypes.string_at(address, size)

    def _fault(self, what: str) -> GuestFault:
        rip = self._frame.rip
        code = self._code_at(rip).hex(" ")
        return GuestFault(
            f"{self.isa} kernel {symbols.name_of(self._kernel)}: {what} at {symbols.name_of(rip)}, rip {rip:#x}, "
            f"bytes {code or 'unreadable'}"
        )

    def _stop(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.core.bochscpu_cpu_stop(self._cpu)

    def _watch(self, done: threading.Event, instruction_limit: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not done.wait(0.02):
            passed = None
            if self._count[0] > instruction_limit:
                passed = f"{instruction_limit} instructions"
            elif time.monotonic() > deadline:
                passed = f"{seconds:g} seconds"
            if passed:
                rip = self.core.cpu_get_pc(0)
                name = symbols.name_of(self._kernel)
                message = f"{self.isa} kernel {name}: ran past {passed}, at {symbols.name_of(rip)}, rip {rip:#x}"
                return self._stop(GuestFault(message))


@functools.cache
def the_machine() -> Machine:
    return Machine()
