"""The emulated device from Python: its memory, tensors in it, launches by name, schedules, and what went wrong."""

import ctypes
import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SCHEDULES = {"fair": 0, "random": 1, "late": 2, "lowest": 3, "highest": 4}
INSTRUCTION_LIMIT = 2_000_000_000  # of one launch, in warp instructions: a minute or two
INITIALISED, UNINITIALISED, OUTSIDE = 0, 1, 2


class Fault(Exception):
    """A launch that the emulator ended; `check` is the short name of what spoke: bounds, race, deadlock, ..."""

    def __init__(self, check: str, sentence: str):
        super().__init__(sentence)
        self.check = check


@functools.cache
def library(folder: Path | None = None) -> ctypes.CDLL:
    """The emulator's library; built on the first call unless a folder is given."""
    from tests.emulator.build import RUNTIME, build

    loaded = ctypes.CDLL(str((folder or build()) / RUNTIME))
    u64, text, number = ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int
    signatures = {
        "allocate": (u64, u64, u64, text),
        "free": (number, u64),
        "mark": (number, u64, u64, number),
        "unwritten": (u64, u64, u64),
        "configure": (None, number, u64, u64, number, ctypes.c_uint32),
        "watch": (None, ctypes.c_void_p, text, ctypes.POINTER(ctypes.c_uint32), number, text),
        "load_ptx": (u64, text),
        "launch": (number, u64, text, ctypes.POINTER(ctypes.c_uint32), u64, ctypes.POINTER(ctypes.c_void_p)),
        "sentence": (text,),
        "check": (text,),
        "count": (None, number),
        "counts": (text,),
        "instructions": (text,),
        "live_allocations": (u64,),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(loaded, f"glm5_emulator_{name}")
        function.restype, function.argtypes = result, arguments
    return loaded


def call(name: str, *arguments):
    return getattr(library(), f"glm5_emulator_{name}")(*arguments)


def last_fault() -> Fault:
    """What went wrong. It is told here, so the next program that asks the runtime for its last error finds none."""
    fault = Fault(call("check").decode(), call("sentence").decode())
    library().cudaGetLastError()
    return fault


@contextmanager
def session(
    seed: int = 0,
    schedule: str = "fair",
    *,
    host_pointers: bool = False,
    instruction_limit: int = INSTRUCTION_LIMIT,
    threads: int = 0,
) -> Iterator[None]:
    """Launches inside run under this schedule; `fair`, `random` (by seed), `late`, `lowest` or `highest`.

    host_pointers: let kernels touch memory that is not the device's, unchecked.
    threads: that run clusters which cannot talk to each other; 0: as many as the process may use. No result, report or
        count depends on it.
    """
    call("configure", SCHEDULES[schedule], seed, instruction_limit, int(host_pointers), threads)
    try:
        yield
    finally:
        call("configure", SCHEDULES["fair"], 0, INSTRUCTION_LIMIT, 0, 0)


@dataclasses.dataclass
class DeviceTensor:
    """A tensor in emulated memory, in an allocation that ends where the tensor ends."""

    tensor: torch.Tensor
    address: int  # of the allocation; 0 for an empty tensor
    runs: list[tuple[int, int]]  # (offset, bytes) of the pieces that belong to the tensor
    is_output: bool

    def unwritten_bytes(self) -> int:
        return sum(call("unwritten", self.address + offset, size) for offset, size in self.runs) if self.address else 0

    def free(self) -> None:
        if self.address:
            call("free", self.address)
        self.address = 0


def _runs(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """The pieces of memory that a strided tensor occupies, as (offset, bytes) from its first element."""
    item = tensor.element_size()
    dims = sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    length = 1
    while dims and dims[0][0] <= length:  # dense so far (or overlapping, as an expanded tensor is)
        stride, count = dims.pop(0)
        length = max(length, stride * (count - 1) + length)
    offsets = [0]
    for stride, count in dims:
        offsets = [o + stride * i for o in offsets for i in range(count)]
    return [(o * item, length * item) for o in sorted(offsets)]


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """Each element of memory once: of an expanded dimension only the first."""
    for dim, (stride, count) in enumerate(zip(tensor.stride(), tensor.shape, strict=True)):
        if stride == 0 and count > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def to_device(tensor: torch.Tensor, name: str = "a tensor", *, is_output: bool = False) -> DeviceTensor:
    """A copy of a CPU tensor in emulated memory: same shape, strides and misalignment, exact extent.

    What lies between the rows of a strided tensor may be neither read nor written. An output counts as uninitialised.
    """
    if tensor.numel() == 0:
        return DeviceTensor(tensor, 0, [], is_output)
    runs = _runs(tensor)
    size = runs[-1][0] + runs[-1][1]
    misalignment = tensor.storage_offset() * tensor.element_size() % 256
    label = f"{name} ({str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}, strides {list(tensor.stride())})"
    address = call("allocate", size, misalignment, label.encode())
    if address == 0:
        raise last_fault()
    raw = torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)
    copy = raw.view(tensor.dtype).as_strided(tensor.shape, tensor.stride(), 0)
    _without_repeats(copy).copy_(_without_repeats(tensor))
    if len(runs) > 1:
        call("mark", address, size, OUTSIDE)
    for offset, count in runs:
        if is_output or len(runs) > 1:
            call("mark", address + offset, count, UNINITIALISED if is_output else INITIALISED)
    return DeviceTensor(copy, address, runs, is_output)


@contextmanager
def counting() -> Iterator[list[dict]]:
    """Launches inside are counted, and their numbers, which schedules depend on, begin anew.

    Once the block has ended the list has a record per launch: kernel, blocks, threads, cluster, shared_bytes;
    instructions by class; multiply_adds by type; memory by path, in requests, bytes, and sectors or wavefronts (taken,
    and ideal: the fewest that would do); delivered_bytes, which bulk loads brought into shared memory.
    """
    launches: list[dict] = []
    call("count", 1)
    try:
        yield launches
        launches += json.loads(call("counts"))
    finally:
        call("count", 0)


def _three(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    given = (value,) if isinstance(value, int) else tuple(value)
    return (*given, 1, 1)[:3]


class Module:
    """A program given as PTX text, or (None) whatever is registered."""

    def __init__(self, ptx: str | None = None):
        self.handle = 0
        if ptx is not None:
            self.handle = call("load_ptx", ptx.encode())
            if self.handle == 0:
                raise last_fault()

    def launch(self, kernel: str, arguments, *, blocks=1, threads=32, cluster=1, shared_bytes: int = 0) -> None:
        """Run a kernel; arguments are ctypes values or DeviceTensors.

        Raises:
            Fault: a check spoke, or the launch was refused.
        """
        values = [ctypes.c_uint64(a.tensor.data_ptr()) if isinstance(a, DeviceTensor) else a for a in arguments]
        pointers = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(v) for v in values))
        shape = (ctypes.c_uint32 * 9)(*_three(blocks), *_three(threads), *_three(cluster))
        if call("launch", self.handle, kernel.encode(), shape, shared_bytes, pointers) != 0:
            raise last_fault()
