"""exp and log of csrc/cpu/exp.h against f64, in units of the last place, and their corners."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import harness
from tests.architecture.native_build import isa_flags

ROOT = Path(__file__).parents[2]
VECTORS = tuple(isa for isa in ("avx2", "avx512") if any(t.name == f"cpu-{isa}" for t in harness.TARGETS))
INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """By name: scalar, without flags, and a vector function for each instruction set of this machine."""
    folder, found = tmp_path_factory.mktemp("exp"), {}
    for isa in ("generic", *VECTORS):
        library = folder / f"{isa}.so"
        flags = [*isa_flags(Path(f"{isa}.cpp")), "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
        source = str(ROOT / "tests/cpu/exp.cpp")
        subprocess.run(["g++", "-std=c++20", "-O3", "-shared", "-fPIC", *flags, source, "-o", library], check=True)
        loaded = ctypes.CDLL(str(library))
        found[f"exp {isa}"] = loaded.exp_scalar if isa == "generic" else loaded.exp_vector
        found[f"log {isa}"] = loaded.log_scalar
    return found


def values_of(function, x: Tensor) -> Tensor:
    room = torch.zeros(len(x) + 64)
    start = -room.data_ptr() % 64 // 4  # vectors are stored to multiples of 64 bytes
    given, y = room[start : start + len(x)].copy_(x), torch.zeros(len(x) + 64)
    to = -y.data_ptr() % 64 // 4
    function(ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(y[to:].data_ptr()), ctypes.c_long(len(x)))
    return y[to : to + len(x)].clone()


def in_last_places(got: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of the exact value."""
    _, exponent = torch.frexp(exact.abs())
    return float(((got.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent - 24)).max())


def from_bits(first: float, last: float, step: int) -> Tensor:
    """Every step-th f32 from one positive number to another."""
    begin, end = (int(torch.tensor(x).view(torch.int32)) for x in (first, last))
    bits = torch.arange(begin, end, step, dtype=torch.int32)
    return bits[: len(bits) // 16 * 16].view(torch.float32)


def swept() -> Tensor:
    magnitudes = from_bits(2.0**-40, 87.3, 197)
    return torch.cat([magnitudes, -magnitudes, torch.linspace(-87.3, 88.3, 1 << 22)])


def test_exp_is_within_a_unit_in_the_last_place(functions):
    x = swept()
    got = values_of(functions["exp generic"], x)
    assert in_last_places(got, x.double().exp()) < 1
    assert in_last_places(got * (1 + 2.0**-22), x.double().exp()) > 1  # the measure sees more than that


def test_log_is_within_a_unit_in_the_last_place(functions):
    x = torch.cat([from_bits(2.0**-126, 3e38, 499), from_bits(0.5, 2.0, 7), from_bits(1.0, 1.001, 1)])
    assert in_last_places(values_of(functions["log generic"], x), x.double().log()) < 1


@pytest.mark.parametrize("isa", VECTORS)
def test_every_instruction_set_gives_the_same_exp_and_log(functions, isa):
    corners = torch.tensor(
        [INF, -INF, NAN, 0.0, -0.0, -87.5, -88.0, -88.1, -1e30, 88.3, 88.4, 89.5, 1e30, 1e-40, 1, -1]
    )
    for x in (swept(), corners):
        harness.check_same_bits(isa, [values_of(functions[f"exp {isa}"], x)], [values_of(functions["exp generic"], x)])
    x = from_bits(2.0**-126, 3e38, 499)
    harness.check_same_bits(isa, [values_of(functions[f"log {isa}"], x)], [values_of(functions["log generic"], x)])


@pytest.mark.parametrize("isa", ("generic", *VECTORS))
def test_corners(functions, isa):
    x = torch.tensor([-INF, -88.5, -1e30, 0.0, -0.0, INF, 89.0, 1e30] * 2)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, INF, INF, INF] * 2)
    assert torch.equal(values_of(functions[f"exp {isa}"], x), expected)
    assert values_of(functions[f"exp {isa}"], torch.full((16,), NAN)).isnan().all()
    assert torch.equal(values_of(functions[f"log {isa}"], torch.tensor([1.0, INF])), torch.tensor([0.0, INF]))
    assert values_of(functions[f"log {isa}"], torch.full((16,), NAN)).isnan().all()
