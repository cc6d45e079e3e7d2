"""The kernels of the mixture of experts under every order in which warps can run: one set of bits."""

import pytest

from glm5_ops.workloads.moe_combine import MoeCombineBwdCase, MoeCombineCase
from glm5_ops.workloads.moe_dispatch import MoeDispatchCase, MoeSortCase
from glm5_ops.workloads.moe_route import MoeRouteBwdCase, MoeRouteCase
from glm5_ops.workloads.swiglu import SwigluBwdCase, SwigluCase, SwigluFp8Case
from tests import emulator, harness
from tests.emulator.harness_target import emulated

SCHEDULES = [("late", 0), ("lowest", 0), ("highest", 0)] + [("random", seed) for seed in range(5)]
# Several blocks of every kernel, ragged edges; of the sort more than one slab.
CASES = {
    "swiglu": SwigluCase(33, 200, live=20),
    "swiglu_fp8": SwigluFp8Case(33, 200, live=20),
    "swiglu_bwd": SwigluBwdCase(17, 200, "f32", live=9),
    "moe_route": MoeRouteCase(40, 256, 8, 8, 4, replay="some"),
    "moe_route_bwd": MoeRouteBwdCase(20, 300, 8, scoring="softmax"),
    "moe_sort": MoeSortCase(1030, 4, 40, "dropped", 3, 30),
    "moe_dispatch": MoeDispatchCase(40, 4, 16, "dropped", hidden=200, dtype="e4m3"),
    "moe_combine": MoeCombineCase(9, 5, 1160, shared=True, dropped=True),
    "moe_combine_bwd": MoeCombineBwdCase(9, 5, 264, dropped=True),
}

pytestmark = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.parametrize("op", CASES)
def test_any_schedule_gives_the_same_bits(op, schedule):
    inputs = CASES[op].inputs()
    with emulated():
        expected = harness.run(op, inputs)
    with emulated(schedule=schedule[0], seed=schedule[1]):
        harness.check_same_bits(f"{op} under {schedule}", harness.run(op, inputs), expected)
