"""An emulator for the CUDA kernels: this library's launchers and kernels, unmodified, on the CPU, under strict checks.

`available()` says whether it can run here; `session(...)` chooses the schedule;
`harness_target.emulated()` lets every op that is called inside run through it. docs/emulator.md says what it promises.
"""

import functools
import importlib.util
from types import ModuleType

from tests.emulator.device import DeviceTensor, Fault, Module, counting, session, to_device


@functools.cache
def available() -> str | None:
    """None, or in a sentence why the emulator cannot run here. Builds it on the first call."""
    try:
        native()
    except (RuntimeError, ImportError, OSError) as problem:
        return str(problem)
    return None


@functools.cache
def native() -> ModuleType:
    """The library's extension module, linked against the emulator; its ops take every tensor as the device's."""
    from tests.emulator.build import build

    importlib.import_module("glm5_ops._native")  # whose exception the module raises
    path = next(build().glob("_native_emulated*.so"))
    spec = importlib.util.spec_from_file_location("_native_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


__all__ = [
    "DeviceTensor",
    "Fault",
    "Module",
    "available",
    "counting",
    "native",
    "session",
    "to_device",
]
