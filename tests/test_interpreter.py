"""The interpreter against this processor, against exact arithmetic, and against kernels that misbehave."""

import ctypes
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests import interpreter

pytestmark = pytest.mark.skipif(interpreter.available() is not None, reason=str(interpreter.available()))
DEFAULT, DENORMALS_ARE_ZERO, ROUND_DOWN = 0x1F80, 0x40, 0x2000  # MXCSR


class Args(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("a", "b", "c", "out")), ("n", ctypes.c_int64)]


class Kernels:
    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))

    def address(self, name: str) -> int:
        return ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value

    def native(self, name: str, args: Args, end: int) -> None:
        getattr(self.library, name)(ctypes.byref(args), *map(ctypes.c_int64, (0, end, 0)))

    def interpret(self, name: str, args: Args | None = None, end: int = 1, isa: str = "amx", **limits) -> None:
        args = args or Args()
        interpreter.the_machine().run(isa, self.address(name), (ctypes.addressof(args), 0, end, 0), **limits)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> Kernels:
    if not shutil.which("g++"):
        pytest.skip("no g++ to build the kernels with")
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = Path(interpreter.__file__).with_name("kernels.cpp")
    subprocess.run(["g++", "-std=c++20", "-O2", "-shared", "-fPIC", source, "-o", path], check=True)
    return Kernels(path)


def pointers(a=None, b=None, c=None, out=None, n: int = 0) -> Args:
    return Args(*(None if x is None else x.ctypes.data for x in (a, b, c, out)), n)


def awkward_floats(rng: np.random.Generator, count: int) -> np.ndarray:
    """Every kind of f32: any bits, numbers near one, numbers near the subnormals, zeros and infinities."""
    bits = rng.integers(0, 2**32, count, dtype=np.uint32)
    near_one = (1 + rng.integers(-64, 64, count) * 2.0**-23).astype(np.float32).view(np.uint32)
    tiny = (bits & 0x807FFFFF) | (rng.integers(0, 30, count, dtype=np.uint32) << 23)
    special = rng.choice(np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x00800000, 0x007FFFFF], np.uint32), count)
    return np.choose(rng.integers(0, 4, count), [bits, near_one, tiny, special]).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("mxcsr", [0, DEFAULT, DEFAULT | DENORMALS_ARE_ZERO, DEFAULT | ROUND_DOWN])
@pytest.mark.parametrize("kernel", ["arithmetic_avx2", "arithmetic_avx512"])
def test_arithmetic_has_the_bits_of_this_processor(kernels, kernel, mxcsr):
    flags = Path("/proc/cpuinfo").read_text()
    if not all(f" {flag} " in flags for flag in ("avx2", "fma", "f16c")):
        pytest.skip("this processor lacks AVX2, FMA or F16C to compare with")
    rng, count = np.random.default_rng(0), 4096
    a, b, c = (awkward_floats(rng, count) for _ in range(3))
    expected, got = np.zeros((2, 7 * count), np.float32)
    kernels.native("arithmetic_avx2", pointers(a, b, c, expected, mxcsr), count)
    kernels.interpret(kernel, pointers(a, b, c, got, mxcsr), count, isa="avx512")
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("count", [1, 63, 64, 777])
def test_bytes_are_permuted_up_to_a_masked_tail(kernels, count):
    rng = np.random.default_rng(count)
    table, index = rng.integers(0, 256, 128, dtype=np.uint8), rng.integers(0, 128, count, dtype=np.uint8)
    out = np.full(count + 64, 99, np.uint8)
    kernels.interpret("permute_bytes", pointers(table, index, out=out), count, isa="avx512")
    assert np.array_equal(out[:count], table[index]) and (out[count:] == 99).all()


def exact_f32(value: Fraction) -> Fraction:
    """Rounded to 24 bits, to nearest even; zero where that is subnormal."""
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()
    exponent -= abs(value) < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - 23)
    rounded = round(value / unit) * unit
    return rounded if abs(rounded) >= Fraction(2) ** -126 else Fraction(0)


def exact_tiles(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c[m, n] + a[m, k, 2] · b[k, n, 2] as Intel's manual orders it, in fractions."""
    smallest = 2.0**-126
    a, b, c = (np.where(np.abs(x) < smallest, 0.0, x.astype(np.float64)) for x in (a, b, c))
    out = np.zeros_like(c)
    for m, n in np.ndindex(c.shape):
        chains = [Fraction(0), Fraction(0)]
        for k, parity in np.ndindex(a.shape[1:]):
            product = Fraction(a[m, k, parity]) * Fraction(b[k, n, parity])
            chains[parity] = exact_f32(chains[parity] + product)
        out[m, n] = float(exact_f32(Fraction(c[m, n]) + exact_f32(sum(chains))))
    return out.astype(np.float32)


# Numbers near one; products near the smallest normal number; subnormal factors.
@pytest.mark.parametrize(("left", "right"), [(0, 0), (-63, -63), (-126, 20)])
@pytest.mark.parametrize(("rows", "pairs", "columns"), [(16, 16, 16), (5, 9, 7), (1, 1, 1)])
def test_tile_products_are_those_of_exact_arithmetic(kernels, rows, pairs, columns, left, right):
    rng = np.random.default_rng(rows)

    def bf16(exponent: int, *shape: int) -> np.ndarray:
        values = rng.standard_normal(shape) * 2.0 ** rng.integers(exponent - 6, exponent + 6, shape)
        return (values.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)

    a, b = bf16(left, rows, pairs, 2), bf16(right, pairs, columns, 2)
    c = (rng.standard_normal((rows, columns)) * 2.0 ** (left + right)).astype(np.float32)
    expected, out = exact_tiles(c, a, b), c.copy()
    a_bits, b_bits = ((x.view(np.uint32) >> 16).astype(np.uint16) for x in (a, b))
    kernels.interpret("multiply_tiles", pointers(a_bits, b_bits, out=out, n=rows | pairs << 8 | columns << 16))
    assert np.array_equal(out, expected)


FAULTS = {
    "illegal_instruction": "amx kernel illegal_instruction in kernels.so: #UD .* at illegal_instruction.* 0f 0b",
    "no_configuration": "#UD .*no tile configuration is loaded.* at no_configuration",
    "system_call": "#UD .* at system_call",
    "misaligned": "#GP .* at misaligned",
    "write_to_code": "#PF write of the protected address",
    "endless_stack": "#PF write of the unmapped address .* at endless_stack",
    "endless_loop": "ran past 100000 instructions, at endless_loop",
}


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_kernel_that_misbehaves_is_named_with_its_fault(kernels, kernel):
    limits = {"instruction_limit": 100_000} if kernel == "endless_loop" else {}
    out = np.zeros(64, np.float32)
    with pytest.raises(interpreter.GuestFault, match=FAULTS[kernel]):
        kernels.interpret(kernel, pointers(out=out), **limits)


def test_a_kernel_that_takes_too_long_is_stopped(kernels):
    with pytest.raises(interpreter.GuestFault, match=r"endless_loop in kernels.so: ran past 0.1 seconds"):
        kernels.interpret("endless_loop", seconds=0.1)


def test_tiles_do_not_outlive_a_kernel(kernels):
    kernels.interpret("leave_tiles_behind")
    with pytest.raises(interpreter.GuestFault, match="no tile configuration is loaded"):
        kernels.interpret("no_configuration")


def test_avx512_alone_has_no_tiles(kernels):
    with pytest.raises(interpreter.GuestFault, match=r"avx512 kernel no_configuration .*#UD"):
        kernels.interpret("no_configuration", isa="avx512")


READ, WRITE, EXECUTE = 1, 2, 4
SIZE = ctypes.c_size_t(4096)


def map_page(libc: ctypes.CDLL, protection: int, address: int | None = None) -> int:
    libc.mmap.restype = ctypes.c_void_p
    private_anonymous, fixed = 0x22, 0x10 if address else 0
    return libc.mmap(ctypes.c_void_p(address), SIZE, protection, private_anonymous | fixed, -1, ctypes.c_long(0))


def test_memory_may_be_unmapped_and_mapped_again_between_calls(kernels):
    libc, out = ctypes.CDLL(None), np.zeros(1, np.int32)
    page = map_page(libc, READ | WRITE)
    args = Args(page, None, None, out.ctypes.data, 0)
    for value in (1, 2):
        ctypes.c_int.from_address(page).value = value
        kernels.interpret("read_word", args)
        assert out[0] == value
        libc.munmap(ctypes.c_void_p(page), SIZE)
        with pytest.raises(interpreter.GuestFault, match=f"#PF read of the unmapped address {page:#x}"):
            kernels.interpret("read_word", args)
        assert map_page(libc, READ | WRITE, page) == page
    libc.munmap(ctypes.c_void_p(page), SIZE)


def test_code_may_change_between_calls():
    libc, out = ctypes.CDLL(None), np.zeros(1, np.int32)
    page = map_page(libc, READ | WRITE | EXECUTE)
    for value in (1, 2):
        code = b"\xc7\x07" + value.to_bytes(4, "little") + b"\xc3"  # movl $value, (%rdi); ret
        ctypes.memmove(page, code, len(code))
        interpreter.the_machine().run("avx512", page, (out.ctypes.data,))
        assert out[0] == value
    libc.munmap(ctypes.c_void_p(page), SIZE)


def test_a_fault_is_raised_when_the_door_closes_and_stops_what_follows(kernels):
    """Through the C door, as run_table uses it."""
    doors, out, args = [], np.zeros(1, np.int32), Args()
    args.a = args.out = out.ctypes.data
    native = SimpleNamespace(interpret_isa=lambda isa, address: doors.append((isa, address)))

    def call(name: str) -> None:
        words = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        door = ctypes.CFUNCTYPE(None, *words)(doors[-1][1])
        door(kernels.address(name), ctypes.addressof(args), 0, 1, 0)

    with interpreter.interpreted("avx512", native) as session:
        call("read_word")
    assert doors[0][0] == 2 and doors[-1] == (0, 0) and session.kernels == 1 and session.instructions > 3
    with pytest.raises(interpreter.GuestFault, match="#UD"), interpreter.interpreted("amx", native) as session:
        call("illegal_instruction")
        call("read_word")
    assert doors[-2][0] == 3 and doors[-1] == (0, 0) and session.kernels == 0
