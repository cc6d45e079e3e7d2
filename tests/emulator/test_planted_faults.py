"""Each planted fault is reported by the right check, and the clean kernels by none."""

import numpy as np
import pytest

from tests.emulator import planted
from tests.emulator.doors import Lab, compile_door
from tests.emulator.indexer_doors import IndexerLab
from tests.emulator.sparse_mla_doors import SparseMlaLab

pytestmark = pytest.mark.slow  # a compilation for each fault

SCHEDULES = [("fair", 0), ("late", 0), ("lowest", 0), ("highest", 0)] + [("random", seed) for seed in range(5)]
CLEAN = {
    "fp8 rows": ("fp8_gemm", planted.FP8_ROWS, planted.RAGGED),
    "fp8 cluster": ("fp8_gemm", planted.FP8_CLUSTER, planted.RAGGED),
    "fp8 swapped": ("fp8_gemm", planted.FP8_SWAPPED, planted.SWAPPED),
    "bf16 rows": ("gemm", planted.BF16_ROWS, planted.RAGGED_BF16),
    "bf16 by hand": ("gemm", planted.BF16_ROWS, planted.BY_HAND),
    "scores of dense keys": ("indexer_logits", 5, planted.DENSE_KEYS),
    "scores of paged keys": ("indexer_logits", 5, planted.PAGED_KEYS),
    "their gradient": ("indexer_logits_bwd", 0, planted.GIVEN_SCORES),
    "the best keys": ("indexer_topk", 1, planted.BEST_KEYS),
    "the best keys, split": ("indexer_topk", 3, planted.BEST_KEYS),
    "attention to chosen keys": ("sparse_mla_attention", 0, planted.CHOSEN_KEYS),
    "attention to cached keys": ("sparse_mla_decode", 0, planted.CACHED_KEYS),
    "attention to cached keys, tiles apart": ("sparse_mla_decode", 0, planted.TILES_APART),
    "its gradient": ("sparse_mla_attention_bwd", 0, planted.CHOSEN_KEYS),
}


def run(op, variant, edits, folder, problem, schedules):
    """The first (check, sentence) that speaks; `values` where the result is wrong."""
    kind = IndexerLab if op.startswith("indexer") else SparseMlaLab if op.startswith("sparse_mla") else Lab
    lab = kind(compile_door(op, variant, folder, edits))
    first = None
    for schedule, seed in schedules:
        outcome, reference, bound = getattr(lab, op)(variant, **problem, schedule=schedule, seed=seed)
        if outcome.out is None:
            return outcome.check, outcome.sentence
        if not (abs(outcome.out - reference) <= bound).all():
            return "values", f"{schedule} {seed}: wrong by {np.nanmax(abs(outcome.out - reference))}"
        first = outcome.out if first is None else first
        if not np.array_equal(first.view(np.uint32), outcome.out.view(np.uint32)):
            return "bits", f"{schedule} {seed} gives other bits than {schedules[0]}"
    return None, "nothing"


@pytest.mark.parametrize("name", CLEAN)
def test_clean_kernels_are_right_and_silent_under_every_schedule(name, tmp_path):
    op, variant, problem = CLEAN[name]
    assert run(op, variant, (), tmp_path, problem, SCHEDULES) == (None, "nothing")


@pytest.mark.parametrize("fault", planted.FAULTS, ids=str)
def test_a_planted_fault_is_found(fault, tmp_path):
    check, sentence = run(fault.op, fault.variant, fault.edits, tmp_path, fault.problem, fault.schedules)
    assert check in fault.checks, f"{check}: {sentence}"
