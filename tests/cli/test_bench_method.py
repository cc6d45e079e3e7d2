"""The method of timing, with a clock that counts instead of ticking."""

import ctypes
import itertools
import subprocess
import sys

import pytest
import torch
from glm5_ops.bench import compare, roofline, timing
from glm5_ops.bench.ops import benchmarks

from glm5_ops.workloads import all_workloads
from glm5_ops.workloads.gemm import GemmCase


class CountingClock:
    """Microseconds: one more for every call; remembers the order."""

    def __init__(self):
        self.order, self.ticks = [], itertools.count(1)

    def __call__(self, call):
        self.order.append(call())
        return float(next(self.ticks))


def contenders(names: str, sets: int) -> dict:
    return {name: [lambda name=name, i=i: (name, i) for i in range(sets)] for name in names}


def test_contenders_take_turns_and_get_equally_many_samples():
    clock = CountingClock()
    samples = timing.interleave(contenders("abc", 5), clock, seconds=0.0)
    assert {len(s) for s in samples.values()} == {timing.FEWEST_ROUNDS}
    for i in range(0, len(clock.order), 3):
        assert {name for name, _ in clock.order[i : i + 3]} == set("abc"), "every round has every contender once"
    first = {clock.order[i][0] for i in range(0, len(clock.order), 3)}
    assert first == set("abc"), "no contender always goes first"


@pytest.mark.parametrize(("names", "sets"), [("ab", 2), ("ab", 4), ("abc", 3), ("abc", 7)])
def test_a_set_of_inputs_comes_back_only_after_all_the_others(names, sets):
    clock = CountingClock()
    timing.interleave(contenders(names, sets), clock, seconds=0.0)
    used = [i for _, i in clock.order]
    for start in range(len(used) - sets + 1):
        assert len(set(used[start : start + sets])) == sets


def test_a_slow_contender_is_not_run_forever():
    samples = timing.interleave(contenders("a", 2), lambda call: 1e6, seconds=0.1)
    assert len(samples["a"]) == timing.FEWEST_SLOW_ROUNDS


def test_the_copies_outgrow_the_cache():
    for set_bytes, cache in ((1 << 20, 32 << 20), (40 << 20, 32 << 20), (1 << 30, 32 << 20)):
        others = timing.count_sets(set_bytes, cache) - 1
        assert others >= 1 and others * set_bytes >= min(2 * cache, timing.MOST_SET_BYTES - set_bytes)
    assert timing.count_sets(0, 32 << 20) <= timing.MOST_SETS


def test_copies_lie_in_other_memory_with_the_same_strides(monkeypatch):
    monkeypatch.setattr(timing, "cache_bytes", lambda device: 1 << 16)
    inputs = {"a": torch.randn(30, 100).t(), "word": "1x128"}
    sets = timing.input_sets(inputs, "cpu")
    assert len({s["a"].data_ptr() for s in sets}) == len(sets) > 2
    assert all(s["a"].stride() == (1, 100) and s["a"].equal(inputs["a"]) and s["word"] == "1x128" for s in sets)


def test_preparing_a_baseline_is_not_timed():
    events = []
    baseline = timing.Prepared(lambda x: events.append("prepared") or (lambda: events.append("called")))
    call = timing.bound(baseline, {"x": 1})
    assert events == ["prepared"]
    timing.CpuClock()(call)
    assert events == ["prepared", "called"]


def test_a_copy_moves_as_many_bytes_as_the_op():
    x = torch.zeros(8, 64, dtype=torch.bfloat16)
    call = timing.copy_of_the_same_bytes(lambda x: x.to(torch.uint8)).prepare(x=x)
    assert 2 * call().numel() == x.numel() * 3
    assert not call().any(), "the target holds the source's zeros: the copy was made"


def test_quantiles():
    assert [timing.quantile([4.0, 1.0, 3.0, 2.0], q) for q in (0, 0.5, 1)] == [1.0, 2.5, 4.0]
    assert timing.drift([1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2)


def test_the_floor_is_the_slower_of_memory_and_arithmetic():
    roof = {"copy_gb_s": 10.0, "tflop_s": {"f32": 0.1, "bf16": 0.2}}
    large, thin = GemmCase(1024, 1024, 1024), GemmCase(1, 1024, 1024)
    assert roofline.floor_us(large, large.inputs(), roof) == (pytest.approx(2 * 1024**3 / 0.2e6), "arithmetic")
    assert roofline.floor_us(thin, thin.inputs(), roof) == (pytest.approx(thin.bytes_moved() / 10e3), "memory")


def test_mann_whitney_agrees_with_published_values():
    # Without overlap, 5 and 5: U = 0, z = (12.5 - 0.5) / sqrt(25 * 11 / 12) = 2.507, two-sided 0.0122.
    assert compare.mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(0.0122, abs=1e-4)
    assert compare.mann_whitney([1.0] * 8, [1.0] * 8) == 1.0
    assert compare.mann_whitney([1, 3, 5, 7], [2, 4, 6, 8]) > 0.5


def document(ours: list[float], torchs: list[float]) -> dict:
    times = {
        name: {"median_us": timing.quantile(s, 0.5), "samples_us": s} for name, s in (("ours", ours), ("torch", torchs))
    }
    return {"results": [{"op": "gemm", "case": "m=1", "device": "cpu", "isa": "avx2", "times": times}]}


def spread(median: float) -> list[float]:
    return [median * (1 + (i - 10) / 400) for i in range(21)]


@pytest.mark.parametrize(
    ("ours", "torchs", "verdict"),
    [
        (spread(120), spread(50), "slower"),
        (spread(80), spread(50), "faster"),
        (spread(101), spread(50), "same"),  # significant, but below 2 %
        (spread(120), spread(62), "same"),  # the whole machine was slower
        ([60.0, 180.0] * 10, spread(50), "same"),  # noise
    ],
)
def test_only_what_exceeds_the_noise_is_called_a_change(ours, torchs, verdict):
    (line,) = compare.compare(document(spread(100), spread(50)), document(ours, torchs))
    assert line["verdict"] == verdict


@pytest.mark.parametrize("op", benchmarks())
def test_a_benchmark_names_cases_of_its_op_and_baselines_that_run(op):
    module, workload = benchmarks()[op], all_workloads()[op]
    assert all(isinstance(case, workload.case) for case in (*module.CASES, *module.QUICK))
    inputs = min((*module.CASES, *module.QUICK), key=lambda case: case.bytes_moved() + case.flops() // 100).inputs()
    for baseline in module.BASELINES.values():
        timing.bound(baseline, inputs)()


# Run by a process of its own: where a long test run has left its memory in pieces, the C library may not keep any.
NEW_PAGES = """
import resource
import torch
from glm5_ops.bench import timing

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(40 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(new_pages(), new_pages())
with timing.kept_memory():
    print(new_pages(), new_pages())
print(new_pages())
"""


def test_kept_memory_needs_no_new_pages():
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("the C library is not glibc")
    printed = subprocess.run([sys.executable, "-c", NEW_PAGES], capture_output=True, text=True, check=True).stdout
    pages = [int(number) > 1000 for number in printed.split()]
    assert pages == [True, True, False, False, True], printed
