"""Ops on the emulator: inside `emulated()` every op called with CPU tensors runs its CUDA launcher and kernel."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

from tests import emulator
from tests.emulator.device import DeviceTensor, to_device


class UnwrittenOutput(AssertionError):
    """A kernel ended without writing all of its output."""


class _EmulatedNative:
    """Stands where an op module has `_native`: each op's entry copies its tensors to the device and back."""

    def __init__(self, native: ModuleType):
        self._native = native
        self.outputs: set[int] = set()  # storages that the op has just allocated

    def __getattr__(self, name: str) -> Callable:
        if name.endswith("_workspace_bytes"):
            # most CUDA kernels need none
            return getattr(self._native, name.replace("_workspace", "_cuda_workspace"), lambda *_: 0)
        function = getattr(self._native, name)
        return lambda *arguments: self._call(name, function, arguments)

    def note_outputs(self, allocate: Callable) -> Callable:
        def call(*args, **kwargs):
            result = allocate(*args, **kwargs)
            made = result if isinstance(result, tuple) else (result,)
            self.outputs = {t.untyped_storage().data_ptr() for t in made if isinstance(t, Tensor) and t.numel()}
            return result

        return call

    def _call(self, name: str, function: Callable, arguments: tuple) -> object:
        names = re.findall(r"(\w+): ", (function.__doc__ or "").split("->")[0])
        copies: dict[int, DeviceTensor] = {}
        scratch: set[int] = set()  # read only where the kernels have written, and forgotten
        try:
            for i, argument in enumerate(arguments):
                if isinstance(argument, Tensor):
                    argument_name = names[i] if i < len(names) else f"argument {i}"
                    is_output = argument.untyped_storage().data_ptr() in self.outputs and argument.numel() > 0
                    is_scratch = argument_name == "workspace"
                    copies[i] = to_device(argument, argument_name, is_output=is_output or is_scratch)
                    scratch |= {i} if is_scratch else set()
            before = {i: _bits(copy.tensor) for i, copy in copies.items() if i not in scratch}
            result = function(*(copies[i].tensor if i in copies else a for i, a in enumerate(arguments)))
            for i, copy in copies.items():
                if i in scratch:
                    continue
                if copy.is_output and (missing := copy.unwritten_bytes()):
                    raise UnwrittenOutput(f"{name} left {missing} bytes of {names[i]} unwritten")
                if copy.is_output or not torch.equal(_bits(copy.tensor), before[i]):
                    arguments[i].copy_(copy.tensor)
            return result
        finally:
            self.outputs = set()
            for copy in copies.values():
                copy.free()


def _bits(tensor: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(integer).clone()


@contextmanager
def emulated(seed: int = 0, schedule: str = "fair") -> Iterator[None]:
    """Ops of glm5_ops that are called inside run on the emulated device, with CPU tensors in and out.

    Raises:
        RuntimeError: the emulator is not available.
    """
    import glm5_ops.ops

    if reason := emulator.available():
        raise RuntimeError(reason)
    stand_in = _EmulatedNative(emulator.native())
    with ExitStack() as stack:
        stack.enter_context(emulator.session(seed, schedule))
        for module in _op_modules(glm5_ops.ops):
            stack.enter_context(mock.patch.object(module, "_native", stand_in))
            for name in [n for n in vars(module) if n.startswith("_outputs")]:
                stack.enter_context(mock.patch.object(module, name, stand_in.note_outputs(getattr(module, name))))
        yield


def _op_modules(package: ModuleType) -> list[ModuleType]:
    import importlib
    import pkgutil

    names = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]
