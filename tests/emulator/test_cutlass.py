"""CUTLASS's own collectives for sm_90a, as they are, against float64 and under several schedules.

k takes more tiles than the ring of shared memory has stages, and there are more tiles than blocks: each stage, barrier
and epilogue buffer is used again.
"""

import ctypes

import numpy as np
import pytest

from tests.emulator import device, foreign
from tests.emulator.doors import Array, bf16_bits, bf16_values, e4m3_values

pytestmark = pytest.mark.slow  # a compilation of a minute or two for each program

SCHEDULES = [("fair", 0), ("late", 0), ("lowest", 0), ("highest", 0), ("random", 1), ("random", 2)]


class Problem(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "a_scales", "b_scales", "d")),
        *((name, ctypes.c_int) for name in ("m", "n", "k", "multiprocessors", "splits")),
    ]


def outcomes(program, problem, out):
    """The result under every schedule; all of them must be the same bits."""
    run = foreign.load(program).run_problem
    run.restype = ctypes.c_char_p
    first = None
    for schedule, seed in SCHEDULES:
        device.call("mark", out.address, out.bytes, device.UNINITIALISED)
        with device.session(seed, schedule):
            wrong = run(ctypes.byref(problem))
        assert wrong is None, f"{schedule} {seed}: {wrong.decode()}\n{device.last_fault()}"
        assert device.call("unwritten", out.address, out.bytes) == 0
        first = out.values.copy() if first is None else first
        np.testing.assert_array_equal(out.values.view(np.uint8), first.view(np.uint8), f"{schedule} {seed}")
    return first


def run_dense(program, a, b, out_dtype, m, n, k, multiprocessors, splits=0, scales=()):
    arrays = [Array(a, "a"), Array(b, "b"), *(Array(s, "scales") for s in scales)]
    out = Array(np.zeros((m, n), out_dtype), "d", written=False)
    a_scales, b_scales = (array.address for array in arrays[2:]) if scales else (None, None)
    problem = Problem(arrays[0].address, arrays[1].address, a_scales, b_scales, out.address,
                      m, n, k, multiprocessors, splits)  # fmt: skip
    got = outcomes(program, problem, out)
    for array in (*arrays, out):
        array.free()
    return got


# name: (d is bf16, b is stored [k, n])
BF16 = {"bf16_cooperative": (True, False), "bf16_pingpong": (False, False), "bf16_cluster": (False, True)}


@pytest.mark.parametrize("program", BF16)
def test_bf16(program):
    rounds, transposed = BF16[program]
    m, n, k = 328, 264, 1088  # 17 tiles of k, 3 x 3 (pingpong: 6 x 3) tiles of d on 2 multiprocessors
    random = np.random.default_rng(1)
    a, b = bf16_bits(random.standard_normal((m, k))), bf16_bits(random.standard_normal((n, k)))
    stored = np.ascontiguousarray(b.T) if transposed else b
    got = run_dense(program, a, stored, np.uint16 if rounds else np.float32, m, n, k, 2)
    got = bf16_values(got) if rounds else got
    x, y = bf16_values(a).astype(np.float64), bf16_values(b).astype(np.float64)
    expected = x @ y.T
    bound = abs(x) @ abs(y).T * 2.0**-20 + (abs(expected) * 2.0**-8 if rounds else 0)
    assert (abs(got - expected) <= bound).all()


def e4m3(random, rows, k):
    """Bits and values, without NaN."""
    bits = random.integers(0, 127, (rows, k), dtype=np.uint8) | random.integers(0, 2, (rows, k), dtype=np.uint8) << 7
    return bits, e4m3_values()[bits]


def scaled_product(x, y, a_scales, b_scales):
    """In float64, and the sum of the magnitudes; scales are [k / 128, m] and [k / 128, n / 128]."""
    product, magnitude = 0.0, 0.0
    for g in range(len(a_scales)):
        at = slice(128 * g, 128 * g + 128)
        scale = a_scales[g, :, None].astype(np.float64) * np.repeat(b_scales[g], 128)[None, : len(y)]
        product = product + x[:, at] @ y[:, at].T * scale
        magnitude = magnitude + abs(x[:, at]) @ abs(y[:, at]).T * abs(scale)
    return product, magnitude


def test_fp8_with_block_scales():
    m, n, k = 328, 264, 1152  # 9 tiles of k in 4 or 5 stages, 3 x 3 tiles of d on 2 multiprocessors
    random = np.random.default_rng(2)
    (a, x), (b, y) = e4m3(random, m, k), e4m3(random, n, k)
    scales = [random.uniform(0.5, 2, (k // 128, rows)).astype(np.float32) for rows in (m, -(-n // 128))]
    got = run_dense("fp8_blockwise", a, b, np.float32, m, n, k, 2, scales=scales)
    expected, magnitude = scaled_product(x, y, *scales)
    assert (abs(got - expected) <= magnitude * 2.0**-20).all()


def test_int8():
    m, n, k = 328, 200, 1280  # 10 tiles of k in 8 stages
    random = np.random.default_rng(3)
    a, b = (random.integers(-128, 128, (rows, k), dtype=np.int8) for rows in (m, n))
    got = run_dense("int8", a, b, np.int32, m, n, k, 2)
    np.testing.assert_array_equal(got, a.astype(np.int64) @ b.astype(np.int64).T)


@pytest.mark.parametrize("splits", [0, 3])
def test_stream_k(splits):
    m, n, k = 256, 264, 1088  # 6 tiles of 17 steps of k for 4 multiprocessors
    random = np.random.default_rng(4)
    a, b = bf16_bits(random.standard_normal((m, k))), bf16_bits(random.standard_normal((n, k)))
    got = run_dense("bf16_stream_k", a, b, np.float32, m, n, k, 4, splits)
    x, y = bf16_values(a).astype(np.float64), bf16_values(b).astype(np.float64)
    assert (abs(got - x @ y.T) <= abs(x) @ abs(y).T * 2.0**-20).all()


class Groups:
    """Operands, references and results of a grouped GEMM."""

    def __init__(self, sizes, multiprocessors):
        random = np.random.default_rng(5)
        self.held, self.outs, self.expected, self.problems = [], [], [], (Problem * len(sizes))()
        for at, (m, n, k) in enumerate(sizes):
            (a, x), (b, y) = e4m3(random, m, k), e4m3(random, n, k)
            scales = [random.uniform(0.5, 2, (k // 128, rows)).astype(np.float32) for rows in (m, -(-n // 128))]
            arrays = [Array(values, name) for values, name in zip((a, b, *scales), "abst", strict=True)]
            out = Array(np.zeros((m, n), np.float32), "d", written=False)
            addresses = (array.address for array in (*arrays, out))
            self.problems[at] = Problem(*addresses, m, n, k, multiprocessors)
            self.expected.append(scaled_product(x, y, *scales))
            self.held += [*arrays, out]
            self.outs.append(out)

    def run(self):
        """None, or what CUTLASS says."""
        run = foreign.load("fp8_grouped").run_problems
        run.restype = ctypes.c_char_p
        for out in self.outs:
            device.call("mark", out.address, out.bytes, device.UNINITIALISED)
        return run(self.problems, len(self.problems))

    def free(self):
        for array in self.held:
            array.free()


def test_fp8_grouped():
    # 16 tiles on 3 multiprocessors, 5 to 10 steps of k in 5 stages; n is ragged
    groups = Groups([(256, 264, 1152), (128, 136, 768), (128, 256, 1280), (384, 72, 640)], 3)
    first = None
    for schedule, seed in SCHEDULES:
        with device.session(seed, schedule):
            wrong = groups.run()
        assert wrong is None, f"{schedule} {seed}: {wrong.decode()}\n{device.last_fault()}"
        got = [out.values.copy() for out in groups.outs]
        first = first or got
        for values, same, (product, magnitude) in zip(got, first, groups.expected, strict=True):
            np.testing.assert_array_equal(values.view(np.uint32), same.view(np.uint32), f"{schedule} {seed}")
            assert (abs(values - product) <= magnitude * 2.0**-20).all()
    groups.free()


def test_fp8_grouped_reads_scales_that_nobody_loaded():
    """The grouped kernel reads the scales of rows beyond m, which it does not load and whose results it drops."""
    groups = Groups([(72, 128, 640)], 1)
    assert groups.run() is not None
    fault = device.last_fault()
    assert fault.check == "uninitialised" and "ld.shared.f32" in str(fault)
    groups.free()
