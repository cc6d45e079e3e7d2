"""CUB's algorithms from the toolkit, as they are, against numpy and under several schedules."""

import ctypes

import numpy as np
import pytest

from tests.emulator import device, foreign
from tests.emulator.doors import Array

pytestmark = pytest.mark.slow  # a compilation of a minute or more for each program

SCHEDULES = [("fair", 0), ("lowest", 0), ("highest", 0), ("random", 1)]


def run(program, function, inputs, outputs, *sizes):
    """The outputs, the same under every schedule."""
    call = getattr(foreign.load(program), function)
    held = [Array(values, "in") for values in inputs]
    results = [Array(values, "out", written=False) for values in outputs]
    first = None
    for schedule, seed in SCHEDULES:
        for result in results:
            device.call("mark", result.address, result.bytes, device.UNINITIALISED)
        with device.session(seed, schedule):
            arrays = order(function, held, results)
            status = call(*(ctypes.c_void_p(array.address) for array in arrays), *sizes)
        assert status == 0, f"{schedule} {seed}: {status} {device.last_fault()}"
        got = [result.values.copy() for result in results]
        first = first or got
        for a, b in zip(got, first, strict=True):
            np.testing.assert_array_equal(a, b, f"{schedule} {seed}")
    for array in (*held, *results):
        array.free()
    return first


def order(function, held, results):
    """The arrays as the function takes them."""
    return [held[0], results[0], held[1], results[1]] if function == "sort_pairs" else [*held, *results]


@pytest.mark.parametrize("count", [1, 1000, 40_000])
def test_sort_pairs(count):
    random = np.random.default_rng(1)
    keys = random.integers(0, 2**32, count, dtype=np.uint32)
    keys[random.integers(0, count, count // 2)] = 7  # ties, which a stable sort keeps in order
    values = np.arange(count, dtype=np.int32)
    got, carried = run("cub_sort", "sort_pairs", [keys, values], [np.zeros_like(keys), np.zeros_like(values)], count)
    expected = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(got, keys[expected])
    np.testing.assert_array_equal(carried, expected)


def test_sort_blocks():
    keys = np.random.default_rng(2).standard_normal((3, 128 * 7)).astype(np.float32)
    expected = np.sort(keys, axis=1)
    for schedule, seed in SCHEDULES:
        array = Array(keys, "keys")
        with device.session(seed, schedule):
            status = foreign.load("cub_sort").sort_blocks(ctypes.c_void_p(array.address), 3)
        assert status == 0, device.last_fault()
        np.testing.assert_array_equal(array.values, expected)
        array.free()


@pytest.mark.parametrize("count", [1, 5000, 70_001])
def test_inclusive_sum(count):
    values = np.random.default_rng(3).integers(-(2**40), 2**40, count)
    (got,) = run("cub_scan", "inclusive_sum", [values], [np.zeros_like(values)], count)
    np.testing.assert_array_equal(got, np.cumsum(values))


@pytest.mark.parametrize("count", [3000, 50_000])
def test_select(count):
    random = np.random.default_rng(4)
    values, flags = random.integers(0, 2**31, count, dtype=np.int32), random.integers(0, 2, count, dtype=np.uint8)
    expected = values[flags == 1]
    outputs = [np.zeros(len(expected), np.int32), np.zeros(1, np.int32)]
    chosen, chosen_count = run("cub_scan", "select_flagged", [values, flags], outputs, count)
    assert chosen_count[0] == len(expected)
    np.testing.assert_array_equal(chosen, expected)


def test_sum():
    values = np.random.default_rng(5).integers(-1000, 1000, 60_000).astype(np.float32)  # sums are exact
    (total,) = run("cub_scan", "sum", [values], [np.zeros(1, np.float32)], len(values))
    assert total[0] == values.astype(np.float64).sum()
