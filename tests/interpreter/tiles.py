"""AMX, which the core lacks: its instructions arrive as invalid opcodes and are executed here.

The arithmetic is Intel's pseudo-code for TDPBF16PS (Software Developer's Manual, volume 2): for every output two chains
of f32 fused multiply-adds, over the even and the odd elements of k, in ascending k; their sum is added to the tile.
Rounding is to nearest even, subnormal inputs and results are zero, MXCSR plays no part.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

TILES, MAX_ROWS, MAX_BYTES = 8, 16, 64
_SMALLEST_NORMAL = 2.0**-126


class InvalidOpcode(Exception):
    """Not an AMX instruction, or one that the processor refuses; the message says which rule it breaks."""


class BadAddress(Exception):
    def __init__(self, address: int, write: bool):
        super().__init__(address, write)
        self.address, self.write = address, write


@dataclass(frozen=True)
class Operand:
    """A memory operand: register numbers (None where absent), scale and displacement."""

    base: int | None
    index: int | None
    scale: int
    displacement: int
    relative: bool  # to the next instruction


@dataclass(frozen=True)
class Instruction:
    name: str
    length: int
    reg: int
    rm: int
    vvvv: int
    memory: Operand | None


# (prefix, opcode, operand is memory) of the VEX.128.0F38.W0 instructions.
_NAMES = {
    (0, 0x49, True): "LDTILECFG",
    (1, 0x49, True): "STTILECFG",
    (0, 0x49, False): "TILERELEASE",
    (3, 0x49, False): "TILEZERO",
    (3, 0x4B, True): "TILELOADD",
    (1, 0x4B, True): "TILELOADDT1",
    (2, 0x4B, True): "TILESTORED",
    (2, 0x5C, False): "TDPBF16PS",
}


def decode(code: bytes) -> Instruction:
    if len(code) < 5 or code[0] != 0xC4:
        raise InvalidOpcode("no instruction of AMX-TILE or AMX-BF16")
    # R, X, B and vvvv are stored inverted.
    r, x, b = (~code[1] >> 7) & 1, (~code[1] >> 6) & 1, (~code[1] >> 5) & 1
    wide, vvvv, long = code[2] >> 7, (~code[2] >> 3) & 15, (code[2] >> 2) & 1
    mode, reg, rm = code[4] >> 6, (code[4] >> 3) & 7, code[4] & 7
    name = _NAMES.get((code[2] & 3, code[3], mode != 3))
    if code[1] & 31 != 2 or wide or long or name is None:
        raise InvalidOpcode("no instruction of AMX-TILE or AMX-BF16")
    if name == "TDPBF16PS":
        if r or b or vvvv > 7:
            raise InvalidOpcode("there are only eight tiles")
        return Instruction(name, 5, reg, rm, vvvv, None)
    if vvvv or (name.startswith(("TILEL", "TILES", "TILEZ")) and r):
        raise InvalidOpcode("a reserved register field is in use")
    if name == "TILERELEASE" and (reg or rm):
        raise InvalidOpcode("no instruction of AMX-TILE or AMX-BF16")
    if mode == 3:
        return Instruction(name, 5, reg, rm, vvvv, None)
    memory, length = _operand(code, mode, rm, x, b)
    if name in ("TILELOADD", "TILELOADDT1", "TILESTORED") and rm != 4:
        raise InvalidOpcode("a tile's memory operand has no SIB byte")
    return Instruction(name, length, reg, rm, vvvv, memory)


def _operand(code: bytes, mode: int, rm: int, x: int, b: int) -> tuple[Operand, int]:
    at, base, index, scale = 5, rm | b << 3, None, 0
    if rm == 4:
        at, scale, base = 6, code[5] >> 6, (code[5] & 7) | b << 3
        index = ((code[5] >> 3) & 7) | x << 3
        index = None if index == 4 else index
    absent = mode == 0 and (base & 7) == 5 and (rm == 4 or rm == 5)
    size = {0: 4 if absent else 0, 1: 1, 2: 4}[mode]
    if len(code) < at + size:
        raise InvalidOpcode("the instruction is cut off")
    displacement = int.from_bytes(code[at : at + size], "little", signed=True)
    return Operand(None if absent else base, index, scale, displacement, absent and rm == 5), at + size


def bf16_to_f64(bits: np.ndarray) -> np.ndarray:
    """Exact, but subnormals are zero."""
    bits = np.where(bits & 0x7F80, bits, bits & 0x8000)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_f32(exact: np.ndarray) -> np.ndarray:
    """Rounds to nearest even; a result below the normal numbers, judged after rounding to 24 bits, is zero."""
    tiny = np.abs(exact) < _SMALLEST_NORMAL - 2.0**-151
    return np.where(tiny, np.copysign(0.0, exact), exact).astype(np.float32)


def dot_bf16(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c[m, n] + a[m, k, 2] · b[k, n, 2]: f32, and bf16 bits.

    A product of two bf16 numbers is exact in f64, and rounding its sum with an f32 number to f64 and then to f32 is
    rounding it once: where that sum needs more than 53 bits, the smaller term is far below half a unit of the other.
    """
    left, right = bf16_to_f64(a), bf16_to_f64(b)
    with np.errstate(all="ignore"):
        products = left.transpose(1, 0, 2)[:, :, None, :] * right[:, None, :, :]  # [k, m, n, 2]
        chains = np.zeros(products.shape[1:])
        # Far from the subnormals every term, so every sum, is a multiple of the smallest normal number or more.
        rounded = np.float32 if _smallest(left) * _smallest(right) >= 2.0**-112 else None
        for term in products:
            np.add(chains, term, out=chains)
            chains[...] = chains.astype(rounded) if rounded else to_f32(chains)
        sums = to_f32(chains[..., 0] + chains[..., 1]).astype(np.float64)
        return to_f32(to_f32(c.astype(np.float64)).astype(np.float64) + sums)


def _smallest(values: np.ndarray) -> float:
    magnitudes = np.abs(values)
    return magnitudes.min(where=magnitudes > 0, initial=1.0)


class Tiles:
    """The tile registers. `allows(address, size, write)` guards this process's memory."""

    def __init__(self, allows: Callable[[int, int, bool], bool]):
        self.allows = allows
        self.data = np.zeros((TILES, MAX_ROWS, MAX_BYTES), np.uint8)
        self.release()

    def release(self) -> None:
        self.configured, self.start_row = False, 0
        self.rows, self.row_bytes = [0] * TILES, [0] * TILES
        self.data[:] = 0

    def execute(self, instruction: Instruction, register: Callable[[int], int], next_rip: int) -> None:
        base, stride = 0, 0
        if operand := instruction.memory:
            base = operand.displacement + (next_rip if operand.relative else 0)
            base += register(operand.base) if operand.base is not None else 0
            stride = register(operand.index) << operand.scale if operand.index is not None else 0
            base, stride = base % 2**64, stride % 2**64
        match instruction.name:
            case "LDTILECFG":
                self._configure((base + stride) % 2**64)
            case "STTILECFG":
                self._store_configuration((base + stride) % 2**64)
            case "TILERELEASE":
                self.release()
            case "TILEZERO":
                self._shape(instruction.reg)
                self.data[instruction.reg] = 0
                self.start_row = 0
            case "TILELOADD" | "TILELOADDT1":
                self._load(instruction.reg, base, stride)
            case "TILESTORED":
                self._store(instruction.reg, base, stride)
            case "TDPBF16PS":
                self._multiply(instruction.reg, instruction.rm, instruction.vvvv)

    def _shape(self, tile: int) -> tuple[int, int]:
        if not self.configured:
            raise InvalidOpcode("no tile configuration is loaded")
        if not self.rows[tile]:
            raise InvalidOpcode(f"tile {tile} is not configured")
        return self.rows[tile], self.row_bytes[tile]

    def _guard(self, address: int, size: int, write: bool) -> None:
        if not self.allows(address, size, write):
            raise BadAddress(address, write)

    def _configure(self, address: int) -> None:
        self._guard(address, 64, False)
        block = ctypes.string_at(address, 64)
        palette, start_row = block[0], block[1]
        row_bytes, rows = struct.unpack_from("<8H", block, 16), block[48:56]
        self.release()
        if palette == 0:
            return
        if palette != 1 or any(block[2:16]) or any(block[32:48]) or any(block[56:64]) or start_row >= MAX_ROWS:
            raise InvalidOpcode("the tile configuration uses a reserved value (#GP on a processor)")
        for count, size in zip(rows, row_bytes, strict=True):
            if count > MAX_ROWS or size > MAX_BYTES or bool(count) != bool(size):
                raise InvalidOpcode(f"a tile of {count} rows of {size} bytes cannot be configured (#GP on a processor)")
        self.configured, self.start_row, self.rows, self.row_bytes = True, start_row, list(rows), list(row_bytes)

    def _store_configuration(self, address: int) -> None:
        self._guard(address, 64, True)
        head = struct.pack("<BB14x8H16x", self.configured, self.start_row, *self.row_bytes)
        ctypes.memmove(address, head + bytes(self.rows) + bytes(8), 64)

    def _load(self, tile: int, base: int, stride: int) -> None:
        rows, size = self._shape(tile)
        loaded = np.zeros((MAX_ROWS, MAX_BYTES), np.uint8)
        loaded[: self.start_row] = self.data[tile, : self.start_row]
        if (memory := self._rows_at(base, stride, rows, size, False)) is not None:
            loaded[self.start_row : rows, :size] = memory[self.start_row :]
        else:
            for row in range(self.start_row, rows):
                address = (base + row * stride) % 2**64
                self._guard(address, size, False)
                ctypes.memmove(loaded.ctypes.data + row * MAX_BYTES, address, size)
        self.data[tile], self.start_row = loaded, 0

    def _store(self, tile: int, base: int, stride: int) -> None:
        rows, size = self._shape(tile)
        if stride >= size and (memory := self._rows_at(base, stride, rows, size, True)) is not None:
            memory[self.start_row :] = self.data[tile, self.start_row : rows, :size]
        else:
            source = self.data[tile].tobytes()
            for row in range(self.start_row, rows):
                address = (base + row * stride) % 2**64
                self._guard(address, size, True)
                ctypes.memmove(address, source[row * MAX_BYTES : row * MAX_BYTES + size], size)
        self.start_row = 0

    def _rows_at(self, base: int, stride: int, rows: int, size: int, write: bool) -> np.ndarray | None:
        """The rows in memory at once; None where they must be looked at one by one."""
        span = stride * (rows - 1) + size
        if span >= 2**32 or not self.allows(base, span, write):
            return None
        buffer = (ctypes.c_char * span).from_address(base)
        return np.ndarray((rows, size), np.uint8, buffer, strides=(stride, 1))

    def _multiply(self, out: int, left: int, right: int) -> None:
        if len({out, left, right}) < 3:
            raise InvalidOpcode("TDPBF16PS wants three different tiles")
        (m, out_bytes), (a_rows, a_bytes), (k, b_bytes) = (self._shape(tile) for tile in (out, left, right))
        if a_rows != m or b_bytes != out_bytes or a_bytes != 4 * k or out_bytes % 4:
            raise InvalidOpcode(
                f"TDPBF16PS of {a_rows} rows of {a_bytes} bytes and {k} rows of {b_bytes} bytes into {m} rows of "
                f"{out_bytes} bytes"
            )
        n = out_bytes // 4
        c = self.data[out, :m, :out_bytes].copy().view(np.float32)
        a = self.data[left, :m, :a_bytes].copy().view(np.uint16).reshape(m, k, 2)
        b = self.data[right, :k, :b_bytes].copy().view(np.uint16).reshape(k, n, 2)
        result = np.zeros((MAX_ROWS, MAX_BYTES), np.uint8)
        result[:m, :out_bytes] = dot_bf16(c, a, b).view(np.uint8).reshape(m, out_bytes)
        self.data[out], self.start_row = result, 0
