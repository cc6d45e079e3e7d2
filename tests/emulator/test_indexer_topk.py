"""The fused CUDA kernels of indexer_topk: what they choose is what topk_select chooses of indexer_logits, to the bit,
whatever the cut of the work and the schedule."""

import pytest
import torch

from glm5_ops import indexer_logits, indexer_logits_paged
from glm5_ops.reference.topk_select import topk_select
from glm5_ops.workloads.indexer_logits import IndexerLogitsCase, IndexerLogitsPagedCase
from tests import emulator, harness
from tests.emulator.harness_target import _EmulatedNative, emulated

pytestmark = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

SCHEDULES = [("late", 0), ("lowest", 0), ("highest", 0)] + [("random", seed) for seed in range(5)]
# (splits, tiles between looks, blocks): one pass, buffers that overflow often, few blocks, splits that get nothing.
CUTS = ((1, 32, 132), (1, 1, 1), (1, 2, 3), (2, 1, 5), (5, 1, 2), (40, 32, 132))


def fused(inputs: dict, topk: int, splits: int, chunk_tiles: int, blocks: int, physical=False, schedule=("fair", 0)):
    native = _EmulatedNative(emulator.native())
    q, paged = inputs["q"], "cache" in inputs
    keys = inputs["block_table"].shape[1] * 64 if paged else inputs["k"].shape[0]
    (tokens, heads, _), cut = q.shape, (splits, chunk_tiles, blocks)
    outputs = (
        torch.empty(tokens, topk, dtype=torch.int32),
        torch.empty(tokens),
        torch.empty(tokens, dtype=torch.int64),
    )
    size = emulator.native().indexer_topk_cut_workspace_bytes(tokens, keys, heads, topk, *cut)
    workspace = torch.empty(size, dtype=torch.uint8)
    native.outputs = {t.untyped_storage().data_ptr() for t in outputs}
    with emulator.session(schedule[1], schedule[0]):
        if paged:
            cache = inputs["cache"]
            pages = cache if cache.dtype == torch.uint8 else cache.flatten(1).view(torch.uint8)
            operands = [q, inputs["weights"], pages, inputs["block_table"], inputs["sequences"], inputs["windows"]]
            native.indexer_topk_paged_cut(*operands, physical, *outputs, workspace, *cut, 0)
        else:
            operands = [q, inputs["k"], inputs["weights"], inputs["windows"], inputs.get("k_scales")]
            native.indexer_topk_cut(*operands, *outputs, workspace, *cut, 0)
    return outputs


def composed(inputs: dict, topk: int, physical: bool = False):
    with emulated():
        scores = indexer_logits_paged(**inputs) if "cache" in inputs else indexer_logits(**inputs)
    places = {"block_table": inputs["block_table"], "sequences": inputs["sequences"]} if physical else {}
    return topk_select(scores, topk, windows=inputs["windows"], margins=True, fingerprints=True, **places)


def check(inputs: dict, topk: int, cuts=CUTS, physical: bool = False, schedule=("fair", 0)) -> None:
    expected = composed(inputs, topk, physical)
    for cut in cuts:
        got = fused(inputs, topk, *cut, physical, schedule)
        for name, g, e in zip(("indices", "margins", "fingerprints"), got, expected, strict=True):
            harness.check_same_bits(f"{name}, topk {topk}, cut {cut}", [g], [e])


DENSE = (
    IndexerLogitsCase(21, 64 * 9 + 7, windows="random"),
    IndexerLogitsCase(11, 64 * 8 - 1, windows="causal"),
    IndexerLogitsCase(9, 64 * 7 + 1, 64, dtype="bf16", windows="packed"),
    IndexerLogitsCase(9, 300, dtype="bf16", windows="full"),
    IndexerLogitsCase(3, 130, fill="nan"),
)


@pytest.mark.parametrize("topk", [1, 3, 64, 130, 1000])
@pytest.mark.parametrize("case", DENSE, ids=str)
def test_chooses_what_topk_select_chooses(case, topk):
    check(case.inputs(), topk)


PAGED = (
    IndexerLogitsPagedCase(5, 64 * 5 - 1, 3),
    IndexerLogitsPagedCase(3, 300, 1, 64),
    IndexerLogitsPagedCase(3, 300, 2, dtype="bf16"),
    IndexerLogitsPagedCase(9, 130, 1),
)


@pytest.mark.parametrize("physical", [False, True], ids=["positions", "slots"])
@pytest.mark.parametrize("topk", [2, 70])
@pytest.mark.parametrize("case", PAGED, ids=str)
def test_paged_keys_too(case, topk, physical):
    check(case.inputs(), topk, CUTS[1:5], physical)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}-{s[1]}")
def test_every_schedule_gives_the_same_bits(schedule):
    check(IndexerLogitsCase(10, 330, windows="random").inputs(), 40, ((1, 1, 1), (3, 1, 2)), schedule=schedule)
    check(IndexerLogitsPagedCase(3, 200, 3).inputs(), 40, ((1, 1, 1), (3, 1, 2)), schedule=schedule)


def _plateau(tokens: int, keys: int, above: int) -> dict:
    """Few keys score above 0, the others are equal."""
    inputs = IndexerLogitsCase(tokens, keys, dtype="bf16", windows="full").inputs()
    inputs["q"] = inputs["q"].abs()
    inputs["weights"] = inputs["weights"].abs()
    inputs["k"] = -inputs["k"].abs()
    best = torch.randperm(keys, generator=torch.Generator().manual_seed(1))[:above]
    inputs["k"][best] = -inputs["k"][best]
    return inputs


@pytest.mark.parametrize("topk", [5, 12, 100, 300])
def test_of_equal_scores_the_first_are_chosen(topk):
    check(_plateau(5, 64 * 7, 12), topk)


@pytest.mark.parametrize("rising", [True, False], ids=["rising", "falling"])
def test_scores_in_order(rising):
    """Rising scores overflow the buffer at every look; falling ones are all left out after the first."""
    inputs = _plateau(3, 64 * 9, 64 * 9)
    inputs["k"][:] = inputs["k"][:1]
    steps = torch.arange(64 * 9).float() / (64 * 9) + 1
    inputs["k"] = (inputs["k"].float() * (steps if rising else steps.flip(0))[:, None]).bfloat16()
    for topk in (1, 50, 200):
        check(inputs, topk)


def test_infinite_scores_and_nan_in_every_row():
    inputs = IndexerLogitsCase(6, 400, dtype="bf16", windows="full", fill="inf").inputs()
    inputs["k"][5:60] = float("nan")
    inputs["k"][100:130] = float("inf")
    for topk in (1, 40, 350, 390):
        check(inputs, topk)


def test_windows_are_cut_and_pages_that_do_not_exist_rank_as_minus_infinity():
    inputs = IndexerLogitsPagedCase(3, 300, 2, ragged=False).inputs()
    pages = inputs["cache"].shape[0]
    for (sequence, page), value in zip(((0, 1), (1, 0), (2, 4)), (pages, -1, -(2**31)), strict=True):
        inputs["block_table"][sequence, page] = value
    expected = composed(inputs, 250)
    inputs["windows"][:, 0] -= 5
    for cut in CUTS[1:5]:
        harness.check_same_bits(f"cut {cut}", fused(inputs, 250, *cut), expected)


def test_without_keys_nothing_is_chosen():
    for inputs in (IndexerLogitsCase(3, 0).inputs(), IndexerLogitsCase(9, 100, windows="empty").inputs()):
        indices, margins, fingerprints = fused(inputs, 7, 1, 1, 1)
        assert bool((indices == -1).all() and (margins == float("inf")).all() and (fingerprints == 0).all())
