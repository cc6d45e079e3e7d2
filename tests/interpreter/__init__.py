"""Runs kernels of instruction sets that this processor lacks: see README.md."""

import ctypes
import threading
from contextlib import contextmanager

from .core import reason_against
from .machine import MOST_INSTRUCTIONS, GuestFault, Machine, the_machine

__all__ = ["GuestFault", "Machine", "Session", "available", "interpreted", "the_machine"]

_ISAS = {"avx512": 2, "amx": 3}  # the numbers of glm5::cpu::Isa
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_one_processor = threading.Lock()


def available() -> str | None:
    """None where kernels can be interpreted, else the reason in a sentence."""
    return reason_against()


class Session:
    """What happened inside `interpreted`."""

    def __init__(self, isa: str, seconds: float, instruction_limit: int):
        self.isa, self.machine = isa, the_machine()
        self.seconds, self.instruction_limit = seconds, instruction_limit
        self.error: BaseException | None = None
        self.kernels = self.instructions = 0

    def call(self, kernel: int, args: int, begin: int, end: int, thread: int) -> None:
        # ctypes would print and forget an exception, so it waits here; later kernels would work on broken data.
        if self.error is not None:
            return
        try:
            with _one_processor:
                self.machine.run(self.isa, kernel, (args, begin, end, thread), self.instruction_limit, self.seconds)
                self.instructions += self.machine.instructions
                self.kernels += 1
        except BaseException as error:
            self.error = error

    def check(self) -> None:
        if self.error is not None:
            raise self.error


@contextmanager
def interpreted(isa: str, native, seconds: float = 120.0, instruction_limit: int = MOST_INSTRUCTIONS):
    """Until the end of the block every CPU op of `native` runs its best kernel up to `isa` in the interpreter.

    A fault of a kernel is raised at the end of the block, instead of what its half-written outputs led to.
    """
    session = Session(isa, seconds, instruction_limit)
    callback = _Callback(session.call)
    native.interpret_isa(_ISAS[isa], ctypes.cast(callback, ctypes.c_void_p).value)
    try:
        yield session
    finally:
        native.interpret_isa(0, 0)
        session.check()
