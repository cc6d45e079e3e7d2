"""A thousand runs of every op that sorts, chooses or adds by index: one set of bits."""

import pytest
import torch

from glm5_ops.workloads import Case
from tests import harness
from tests.harness import WORKLOADS

OPS = [op for op in WORKLOADS if op.startswith(("indexer", "moe", "swiglu", "topk_select"))]
TARGETS = [t for t in harness.TARGETS if not t.interpreted and not t.emulated]  # the emulator has schedules instead


def _smallest(op: str) -> Case:
    """The cheapest of the op's edges that is more than a corner."""
    edges = [case for case in WORKLOADS[op].edges if case.bytes_moved() > 20_000]
    return min(edges, key=lambda case: case.bytes_moved() + case.flops() // 100)


@pytest.mark.parametrize(
    ("target", "case", "op"), [pytest.param(t, _smallest(op), op, id=f"{t}-{op}") for t in TARGETS for op in OPS]
)
def test_a_thousand_runs_give_the_same_bits(op, case, target):
    inputs, threads = case.inputs(target.device), torch.get_num_threads()
    expected = harness.run(op, inputs)
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for _ in range(250):
                harness.check_same_bits(f"{op} with {count} threads", harness.run(op, inputs), expected)
    finally:
        torch.set_num_threads(threads)
