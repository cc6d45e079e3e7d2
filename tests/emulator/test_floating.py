"""Floating-point instructions and conversions against numpy and torch."""

import numpy as np
import pytest
import torch

from tests.emulator.ptx import elementwise

RANDOM = np.random.default_rng(2)
SPECIAL = np.array(
    [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38, 2.0**-126, 0.5, 1.5, 2.5, -2.5], np.float32
)


def floats(count: int = 512, spread: float = 20) -> np.ndarray:
    made = (RANDOM.standard_normal(count) * 2.0 ** RANDOM.uniform(-spread, spread, count)).astype(np.float32)
    made[: len(SPECIAL)] = SPECIAL
    return RANDOM.permutation(made)


def same(got: np.ndarray, expected: np.ndarray) -> None:
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[got.dtype.itemsize]
    np.testing.assert_array_equal(got[~nan].view(unsigned), expected[~nan].view(unsigned))


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_arithmetic(dtype):
    name = "f32" if dtype == np.float32 else "f64"
    a, b = floats().astype(dtype), floats().astype(dtype)
    for op, function in {"add.rn": np.add, "sub.rn": np.subtract, "mul.rn": np.multiply, "div.rn": np.divide}.items():
        same(elementwise(f"{op}.{name} {{d}}, {{a}}, {{b}};", dtype, a, b), function(a, b))
    same(elementwise(f"sqrt.rn.{name} {{d}}, {{a}};", dtype, a), np.sqrt(a))
    same(elementwise(f"rcp.rn.{name} {{d}}, {{a}};", dtype, a), dtype(1) / a)
    same(elementwise(f"abs.{name} {{d}}, {{a}};", dtype, a), np.abs(a))
    same(elementwise(f"neg.{name} {{d}}, {{a}};", dtype, a), -a)


def test_fused_multiply_add_rounds_once():
    a, b, c = floats(spread=8), floats(spread=8), floats(spread=8)
    # an f64 holds the product exactly, and the sum to 53 bits: enough but for ties, which random numbers do not meet
    expected = (a.astype(np.float64) * b + c).astype(np.float32)
    same(elementwise("fma.rn.f32 {d}, {a}, {b}, {c};", np.float32, a, b, c), expected)
    assert (expected != (a * b + c)).any()


def test_directed_rounding():
    a, b = (RANDOM.standard_normal(512).astype(np.float32) for _ in "ab")
    exact = a.astype(np.float64) + b  # exact indeed: the exponents are close
    nearest = exact.astype(np.float32)
    toward = np.where(np.abs(nearest.astype(np.float64)) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest)
    finite = np.isfinite(exact)
    got = elementwise("add.rz.f32 {d}, {a}, {b};", np.float32, a, b)
    np.testing.assert_array_equal(got[finite], toward[finite])
    down = np.where(nearest.astype(np.float64) > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    got = elementwise("add.rm.f32 {d}, {a}, {b};", np.float32, a, b)
    np.testing.assert_array_equal(got[finite], down[finite])


def test_minimum_and_maximum_prefer_numbers_to_nan():
    a, b = floats(), floats()
    same(
        elementwise("min.f32 {d}, {a}, {b};", np.float32, a, b),
        np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.minimum(a, b))),
    )
    same(
        elementwise("max.f32 {d}, {a}, {b};", np.float32, a, b),
        np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.maximum(a, b))),
    )
    same(elementwise("max.NaN.f32 {d}, {a}, {b};", np.float32, a, b), np.maximum(a, b))
    zeros = np.array([0.0, -0.0] * 16, np.float32)
    assert np.signbit(elementwise("min.f32 {d}, {a}, {b};", np.float32, zeros, zeros[::-1].copy())).all()


def test_flush_to_zero_and_saturation():
    a, b = floats(), np.ones(512, np.float32)
    flushed = np.where(np.abs(a) < 2.0**-126, np.copysign(np.float32(0), a), a)
    same(elementwise("mul.rn.ftz.f32 {d}, {a}, {b};", np.float32, a, b), flushed)
    clamped = np.where(np.isnan(a), 0, np.clip(a, 0, 1)).astype(np.float32) + np.float32(0)
    same(elementwise("mul.rn.sat.f32 {d}, {a}, {b};", np.float32, a, b), clamped)


@pytest.mark.parametrize(("op", "function"), [
    ("ex2.approx", np.exp2), ("lg2.approx", np.log2), ("rsqrt.approx", lambda x: x**-0.5),
    ("rcp.approx", np.reciprocal), ("sqrt.approx", np.sqrt), ("sin.approx", np.sin), ("tanh.approx", np.tanh),
])  # fmt: skip
def test_approximations_are_near(op, function):
    a = RANDOM.uniform(0.1, 8, 256).astype(np.float32)
    got = elementwise(f"{op}.f32 {{d}}, {{a}};", np.float32, a)
    np.testing.assert_allclose(got, function(a.astype(np.float64)), rtol=2**-22, atol=2**-22)


def halves(dtype: torch.dtype, count: int = 512) -> np.ndarray:
    return torch.from_numpy(floats(count, 6)).to(dtype).view(torch.int16).numpy().astype(np.uint16)


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision(name, dtype):
    a, b, c = halves(dtype), halves(dtype), halves(dtype)
    x, y, z = (torch.from_numpy(v.view(np.int16)).view(dtype) for v in (a, b, c))

    def judge(instruction, expected, *sources):
        got = torch.from_numpy(elementwise(instruction, np.uint16, *sources).view(np.int16)).view(dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)

    judge(f"add.rn.{name} {{d}}, {{a}}, {{b}};", x + y, a, b)
    judge(f"mul.rn.{name} {{d}}, {{a}}, {{b}};", x * y, a, b)
    judge(f"fma.rn.{name} {{d}}, {{a}}, {{b}}, {{c}};", (x.double() * y.double() + z.double()).to(dtype), a, b, c)
    pairs = elementwise(f"mul.rn.{name}x2 {{d}}, {{a}}, {{b}};", np.uint32, a.view(np.uint32), b.view(np.uint32))
    got = torch.from_numpy(pairs.view(np.int16)).view(dtype)
    torch.testing.assert_close(got, x * y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "compare", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"]
)
def test_comparisons_of_floats(compare):
    a, b = floats(), floats()
    b[:256] = a[:256]
    unordered = np.isnan(a) | np.isnan(b)
    base = {
        "eq": a == b,
        "ne": a != b,
        "lt": a < b,
        "le": a <= b,
        "gt": a > b,
        "ge": a >= b,
        "num": ~unordered,
        "nan": unordered,
    }
    expected = base[compare] if compare in ("num", "nan") else (
        base[compare] & ~unordered if compare in base else base[compare[:-1]] | unordered)  # fmt: skip
    got = elementwise(f"setp.{compare}.f32 %p1, {{a}}, {{b}}; selp.u32 {{d}}, 1, 0, %p1;", np.uint32, a, b)
    np.testing.assert_array_equal(got.astype(bool), expected)


@pytest.mark.parametrize("name", ["s32", "u32", "s64", "u64"])
def test_integers_to_floats(name):
    dtype = {"s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64}[name]
    info = np.iinfo(dtype)
    a = RANDOM.integers(info.min, info.max, 512, dtype=dtype, endpoint=True) >> RANDOM.integers(
        0, info.bits - 1, 512
    ).astype(dtype)
    a[:2] = info.min, info.max
    same(elementwise(f"cvt.rn.f32.{name} {{d}}, {{a}};", np.float32, a), a.astype(np.float32))
    same(elementwise(f"cvt.rn.f64.{name} {{d}}, {{a}};", np.float64, a), a.astype(np.float64))


@pytest.mark.parametrize("name", ["s32", "u32", "s64", "u8"])
def test_floats_to_integers_saturate(name):
    dtype = {"s32": np.int32, "u32": np.uint32, "s64": np.int64, "u8": np.uint8}[name]
    info, a = np.iinfo(dtype), floats()
    for mode, rounded in {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}.items():
        whole = rounded(np.nan_to_num(a.astype(np.float64), nan=0, posinf=1e30, neginf=-1e30))
        expected = [min(max(int(x), int(info.min)), int(info.max)) for x in whole]
        out = np.uint32 if name == "u8" else dtype
        got = elementwise(f"cvt.{mode}.{name}.f32 {{d}}, {{a}};", out, a)
        assert [int(x) for x in got] == expected


def test_narrowing_of_floats():
    a = floats()
    x = torch.from_numpy(a)
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        got = elementwise(f"cvt.rn.{name}.f32 {{d}}, {{a}};", np.uint16, a)
        torch.testing.assert_close(
            torch.from_numpy(got.view(np.int16)).view(dtype), x.to(dtype), rtol=0, atol=0, equal_nan=True
        )
        wide = elementwise(f"cvt.f32.{name} {{d}}, {{a}};", np.float32, got)
        same(wide, x.to(dtype).float().numpy())
    got = elementwise("cvt.rz.bf16.f32 {d}, {a};", np.uint16, a)
    finite = np.isfinite(a)
    np.testing.assert_array_equal(got[finite], (a.view(np.uint32) >> 16).astype(np.uint16)[finite])


def test_pairs_put_the_first_operand_high():
    a, b = floats(), floats()
    got = elementwise("cvt.rn.bf16x2.f32 {d}, {a}, {b};", np.uint32, a, b)
    halves_of = torch.from_numpy(got.view(np.int16).copy()).view(torch.bfloat16).reshape(-1, 2)
    expected = torch.stack([torch.from_numpy(b), torch.from_numpy(a)], 1).to(torch.bfloat16)
    torch.testing.assert_close(halves_of, expected, rtol=0, atol=0, equal_nan=True)


def test_fp8_conversions_saturate():
    a, b = floats(spread=12), floats(spread=12)
    for name, dtype, largest in (("e4m3x2", torch.float8_e4m3fn, 448.0), ("e5m2x2", torch.float8_e5m2, 57344.0)):
        got = (
            elementwise(f"cvt.rn.satfinite.{name}.f32 {{d}}, {{a}}, {{b}};", np.uint16, a, b)
            .view(np.uint8)
            .reshape(-1, 2)
        )
        for column, source in ((1, a), (0, b)):
            clamped = torch.from_numpy(source).clamp(-largest, largest).to(dtype)
            decoded = torch.from_numpy(got[:, column].copy()).view(dtype)
            torch.testing.assert_close(decoded.float(), clamped.float(), rtol=0, atol=0, equal_nan=True)
    every = np.arange(65536, dtype=np.uint32).astype(np.uint16)
    wide = elementwise("cvt.rn.f16x2.e4m3x2 {d}, {a};", np.uint32, every)
    got = torch.from_numpy(wide.view(np.int16).copy()).view(torch.float16).float()
    expected = torch.from_numpy(every.view(np.uint8).copy()).view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_integer_widths():
    a = RANDOM.integers(-(2**31), 2**31, 256).astype(np.int32)
    np.testing.assert_array_equal(elementwise("cvt.s64.s32 {d}, {a};", np.int64, a), a.astype(np.int64))
    np.testing.assert_array_equal(
        elementwise("cvt.u64.u32 {d}, {a};", np.uint64, a.view(np.uint32)), a.view(np.uint32).astype(np.uint64)
    )
    np.testing.assert_array_equal(elementwise("cvt.s32.s8 {d}, {a};", np.int32, a), a.astype(np.int8).astype(np.int32))
    np.testing.assert_array_equal(
        elementwise("cvt.u32.u16 {d}, {a};", np.uint32, a.astype(np.uint16)), a.astype(np.uint16).astype(np.uint32)
    )
    np.testing.assert_array_equal(elementwise("cvt.sat.s8.s32 {d}, {a};", np.int32, a), np.clip(a, -128, 127))
