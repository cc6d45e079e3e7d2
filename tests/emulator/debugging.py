"""Looking at one warp while a kernel runs: a trace, stops at source lines, tiles of shared memory as matrices.

`watch` calls a function around instructions of one warp; `Printer` is such a function, and what the command line uses.
Watching changes no schedule, and costs nothing where nobody looks.
"""

import ctypes
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

import numpy as np
import torch

from tests.emulator.device import call

BEFORE, AFTER, BLOCKED, FAILED = range(4)
LANES = 32
RANK_SHIFT = 24  # a shared address has the rank of the block in its cluster from this bit on
DTYPES = {
    "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
    "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
}  # fmt: skip


# ---- what csrc/debug.h hands over


class _Register(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_bytes", ctypes.c_uint64),
        ("type", ctypes.c_char_p),
        ("lanes", ctypes.c_void_p),
        ("bytes", ctypes.c_uint32),
        ("is_written", ctypes.c_uint32),
    ]


class _Stop(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("callers", ctypes.c_char_p),
        ("text", ctypes.c_void_p),
        ("text_bytes", ctypes.c_uint64),
        ("registers", ctypes.POINTER(_Register)),
        ("shared", ctypes.c_uint64),
        ("shadow", ctypes.c_uint64),
        ("register_count", ctypes.c_uint32),
        ("mask", ctypes.c_uint32),
        ("line", ctypes.c_uint32),
        ("ptx_line", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 3),
        ("warp", ctypes.c_uint32),
        ("shared_begin", ctypes.c_uint32),
        ("shared_end", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("arrives", ctypes.c_uint32),
    ]


_LISTENER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Stop))


@dataclasses.dataclass(frozen=True)
class Chosen:
    """One warp of one block of the kernels whose name contains `kernel`."""

    kernel: str = ""
    block: tuple[int, int, int] = (0, 0, 0)
    warp: int = 0

    @classmethod
    def parse(cls, text: str) -> "Chosen":
        """`KERNEL:BLOCK:WARP`, e.g. `fp8_gemm:3:4` or `fp8_gemm:1,0,2:4`."""
        found = re.fullmatch(r"(.*):(\d+(?:,\d+){0,2}):(\d+)", text)
        if found is None:
            raise ValueError(f"{text!r} is not KERNEL:BLOCK:WARP, e.g. fp8_gemm:3:4 or fp8_gemm:1,0,2:4")
        block = (*(int(n) for n in found[2].split(",")), 0, 0)[:3]
        return cls(found[1], block, int(found[3]))


@dataclasses.dataclass(frozen=True)
class Register:
    """A register that an instruction names, with the value of every lane."""

    name: str
    type: str  # as the instruction takes it
    values: np.ndarray  # 32; of a predicate booleans
    is_written: bool


class Stop:
    """A warp around an instruction; `kind` is BEFORE, AFTER, BLOCKED (it waits there) or FAILED (a check spoke).

    Good only while the listener runs.
    """

    def __init__(self, raw: _Stop):
        self._raw = raw
        self.kernel, self.file = raw.kernel.decode(), raw.file.decode()
        self.callers = raw.callers.decode().split()  # file:line of calls that were inlined, innermost first
        self.instruction = " ".join(ctypes.string_at(raw.text, raw.text_bytes).decode().split())
        self.line, self.ptx_line, self.mask, self.kind = raw.line, raw.ptx_line, raw.mask, raw.kind
        self.block, self.warp, self.arrives = tuple(raw.block), raw.warp, bool(raw.arrives)

    @property
    def registers(self) -> list[Register]:
        """Those that the instruction names, in its order, each once as a source and once as a destination."""
        found: dict[tuple[str, bool], Register] = {}
        for raw in self._raw.registers[: self._raw.register_count]:
            name = ctypes.string_at(raw.name, raw.name_bytes).decode()
            found[name, bool(raw.is_written)] = Register(name, raw.type.decode(), _values(raw), bool(raw.is_written))
        return list(found.values())

    def shared(self, tile: "Tile") -> tuple[torch.Tensor, torch.Tensor]:
        """A tile of the block's shared memory, and which of its elements were ever written.

        Raises:
            ValueError: the tile is not within the block's shared memory.
        """
        address = tile.address(self)
        own = self._raw.shared_begin >> RANK_SHIFT << RANK_SHIFT
        address += own if address >> RANK_SHIFT == 0 else 0
        size = DTYPES[tile.dtype].itemsize
        at = tile.offsets(address)
        if at.size and (at.min() < self._raw.shared_begin or at.max() + size > self._raw.shared_end):
            begin, end = self._raw.shared_begin - own, self._raw.shared_end - own
            raise ValueError(f"{tile} is not within the block's shared memory [{begin:#x}, {end:#x})")
        window = self._raw.shared_begin, self._raw.shared_end - self._raw.shared_begin
        each = (at - window[0])[:, :, None] + np.arange(size)
        values, shadow = (_bytes_at(base + window[0], window[1])[each] for base in (self._raw.shared, self._raw.shadow))
        return torch.from_numpy(values).view(DTYPES[tile.dtype]).squeeze(-1), torch.from_numpy((shadow == 0).all(-1))


def _bytes_at(address: int, count: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))


def _values(raw: _Register) -> np.ndarray:
    if raw.bytes == 0:
        mask = ctypes.c_uint32.from_address(raw.lanes).value
        return np.array([bool(mask >> lane & 1) for lane in range(LANES)])
    row, kind = _bytes_at(raw.lanes, raw.bytes * LANES).copy(), raw.type.decode()
    if kind in ("f32", "f64") and kind == f"f{8 * raw.bytes}":
        return row.view(f"f{raw.bytes}")
    if kind in ("f16", "f16x2", "bf16", "bf16x2"):
        dtype = torch.bfloat16 if kind.startswith("b") else torch.float16
        return torch.from_numpy(row).view(dtype).float().numpy().reshape(LANES, -1)
    if raw.bytes == 16:
        return row.view(np.uint64).reshape(LANES, 2)
    return row.view(f"{'i' if kind.startswith('s') else 'u'}{raw.bytes}")


@dataclasses.dataclass(frozen=True)
class Tile:
    """A matrix in shared memory: dense rows; or the first columns of rows as wide as a swizzle, which is undone."""

    place: str  # a shared address, or a register of the instruction plus one: "0x2400", "%r12", "%r12+512"
    rows: int
    columns: int
    dtype: str
    swizzle: int = 0  # bytes of a row of the pattern: 32, 64, 128; 0: none

    @classmethod
    def parse(cls, text: str) -> "Tile":
        """`shared:OFFSET,rows,cols,dtype[,swizzle]`, e.g. `shared:0x2400,64,128,e4m3,128`."""
        found = re.fullmatch(r"shared:([^,]+),(\d+),(\d+),(\w+)(?:,(\d+))?", text)
        if found is None:
            raise ValueError(f"{text!r} is not shared:OFFSET,rows,cols,dtype[,swizzle]")
        return cls(found[1], int(found[2]), int(found[3]), found[4], int(found[5] or 0))

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.dtype!r} is no element type; there are {', '.join(DTYPES)}")
        if self.swizzle not in (0, 32, 64, 128):
            raise ValueError(f"a swizzle is 32, 64 or 128 bytes wide, not {self.swizzle}")
        width = self.columns * DTYPES[self.dtype].itemsize
        if self.swizzle and width > self.swizzle:
            raise ValueError(f"a row of {self} has {width} bytes, more than the swizzle's {self.swizzle}")
        if re.fullmatch(r"(0x[0-9a-fA-F]+|\d+|%\w+(\+(0x[0-9a-fA-F]+|\d+))?)", self.place) is None:
            raise ValueError(f"{self.place!r} is neither a shared address nor a register like %r12 or %r12+512")

    def __str__(self) -> str:
        pattern = f", {self.swizzle}-byte swizzle" if self.swizzle else ""
        return f"shared {self.place}: {self.dtype}[{self.rows}, {self.columns}]{pattern}"

    def address(self, stop: Stop) -> int:
        name, _, more = self.place.partition("+")
        if not name.startswith("%"):
            return int(self.place, 0)
        known = {register.name: register for register in stop.registers}
        if name not in known:
            raise ValueError(f"the instruction `{stop.instruction}` has no register {name}")
        lane = (stop.mask & -stop.mask).bit_length() - 1
        return (int(known[name].values[lane]) + int(more or "0", 0)) & 0xFFFFFFFF

    def offsets(self, address: int) -> np.ndarray:
        """The shared address of every element."""
        size = DTYPES[self.dtype].itemsize
        pitch = self.swizzle or self.columns * size
        linear = address + pitch * np.arange(self.rows)[:, None] + size * np.arange(self.columns)
        return linear ^ (linear >> 3 & {0: 0, 32: 0x10, 64: 0x30, 128: 0x70}[self.swizzle])


@contextmanager
def watch(chosen: Chosen, listener: Callable[[Stop], None], lines: tuple[str, ...] = ()) -> Iterator[None]:
    """Launches inside call `listener` around each instruction of the chosen warp, or of `lines` ("file:line") alone.

    A line's instructions are also those that were inlined into it. What the listener raises ends the watching, and is
    raised when the block ends.
    """
    for line in lines:
        if re.fullmatch(r".*[^:]:\d+", line) is None:
            raise ValueError(f"{line!r} is not FILE:LINE, e.g. kernel_sm90.cuh:120")
    problems: list[BaseException] = []

    def told(raw) -> None:
        if problems:
            return
        try:
            listener(Stop(raw.contents))
        except BaseException as problem:  # cannot pass through the kernel
            problems.append(problem)

    function, block = _LISTENER(told), (ctypes.c_uint32 * 3)(*chosen.block)
    call("watch", function, chosen.kernel.encode(), block, chosen.warp, "\n".join(lines).encode())
    try:
        yield
    finally:
        call("watch", _LISTENER(), b"", block, 0, b"")
    if problems:
        raise problems[0]


# ---- as text


def _number(value: object, kind: str) -> str:
    if isinstance(value, np.ndarray):
        return "(" + " ".join(_number(v, kind) for v in value) + ")"
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, np.floating):
        return str(value)  # the shortest text that is this number
    return hex(value) if kind.startswith("b") else str(int(value))


def _summary(register: Register, lanes: list[int]) -> str | None:
    """What all these lanes have in common, where they do."""
    values, kind = register.values, register.type
    active = values[lanes]
    if (active == active[0]).all():
        return _number(active[0], kind)
    if values.dtype == bool:
        return f"lanes {sum(1 << lane for lane in lanes if values[lane]):#010x}"
    if values.ndim == 1 and values.dtype.kind in "iu":
        exact = [int(v) for v in active]
        step, rest = divmod(exact[-1] - exact[0], lanes[-1] - lanes[0])
        first = exact[0] - step * lanes[0]
        if rest == 0 and exact == [first + step * lane for lane in lanes]:
            steps = "lane" if step == 1 else f"{step} * lane"
            return f"{_number(first, kind)} + {steps}" if first else steps
    return None


def describe(register: Register, mask: int, most: int = LANES) -> str:
    """`%r1 = 5` where all lanes agree, `%r1 = 16 + 4 * lane` where they step, else a value per lane, in rows of eight.

    mask: lanes that count; `.` stands for the others. most: if fewer, only so many values, in one row.
    """
    if summary := _summary(register, [lane for lane in range(LANES) if mask >> lane & 1]):
        return f"{register.name} = {summary}"
    shown = [_number(v, register.type) if mask >> lane & 1 else "." for lane, v in enumerate(register.values)]
    if most < LANES:
        return f"{register.name} = [{' '.join([*shown[: most - 1], '..', shown[-1]])}]"
    width = max(map(len, shown))
    rows = (" ".join(cell.rjust(width) for cell in shown[i : i + 8]) for i in range(0, LANES, 8))
    return f"{register.name} by lane\n" + "\n".join(f"        {8 * i:4}: {row}" for i, row in enumerate(rows))


def describe_tile(stop: Stop, tile: Tile) -> str:
    """The tile as a matrix, row by row; `?` was never written."""
    values, is_written = stop.shared(tile)
    number = "{:.4g}".format if values.dtype.is_floating_point else "{}".format
    if values.dtype.itemsize == 1 and values.dtype.is_floating_point:
        values = values.float()
    rows = [
        [number(v) if known else "?" for v, known in zip(row, seen, strict=True)]
        for row, seen in zip(values.tolist(), is_written.tolist(), strict=True)
    ]
    width = max((len(cell) for row in rows for cell in row), default=1)
    body = "\n".join(f"  {i:4}: " + " ".join(cell.rjust(width) for cell in row) for i, row in enumerate(rows))
    return f"{tile}\n{body}"


class Printer:
    """A listener of `watch` that prints: a line per instruction (traces), or all lanes and the tiles (stops)."""

    def __init__(self, traces: bool, tiles: tuple[Tile, ...] = (), out: TextIO | None = None):
        self.traces, self.tiles, self.out = traces, tiles, out or sys.stdout
        self.arrivals = 0
        self._where = ""

    def __call__(self, stop: Stop) -> None:
        if stop.kind == BEFORE:
            self._begin(stop)
        # at the end of a line: what the instruction did is added to it
        if stop.kind in (BEFORE, AFTER):
            self._registers([r for r in stop.registers if r.is_written == (stop.kind == AFTER)], stop)
        if stop.kind != BEFORE:
            self._print({AFTER: "\n", BLOCKED: "  waits ..", FAILED: "  fault\n"}[stop.kind])

    def _begin(self, stop: Stop) -> None:
        here = f"{stop.kernel}, block {stop.block}, warp {stop.warp}"
        if self.traces and here != self._where:
            self._print(f"{here}\n")
        if not self.traces and stop.arrives:
            self.arrivals += 1
            self._print(f"stop {self.arrivals}: {here}\n")
            for tile in self.tiles:
                self._print(f"{describe_tile(stop, tile)}\n")
        self._where = here
        lanes = "" if stop.mask == 0xFFFFFFFF else f" [lanes {stop.mask:#010x}]"
        path = " < ".join(place.rsplit("/", 1)[-1] for place in (f"{stop.file}:{stop.line}", *stop.callers))
        self._print(f"{path} `{stop.instruction}`{lanes}")

    def _registers(self, registers: list[Register], stop: Stop) -> None:
        before_each = "\n  -> " if stop.kind == AFTER else "\n     "
        if self.traces:
            before_each = "  -> " if stop.kind == AFTER else "  "
        for register in registers:
            self._print(before_each + describe(register, stop.mask, 5 if self.traces else LANES))

    def _print(self, text: str) -> None:
        print(text, end="", file=self.out, flush=True)
