"""The indexer's CUDA kernels: any cut of the work and any schedule give the same bits, and no index is followed out of
bounds."""

import dataclasses
import importlib

import pytest
import torch

from glm5_ops import indexer_logits, indexer_logits_at_bwd, indexer_logits_bwd, indexer_logits_paged
from glm5_ops.workloads.indexer_logits import IndexerLogitsBwdCase, IndexerLogitsCase, IndexerLogitsPagedCase
from glm5_ops.workloads.indexer_logits_at import IndexerLogitsAtBwdCase
from tests import emulator, harness
from tests.emulator.harness_target import emulated

logits_module = importlib.import_module("glm5_ops.ops.indexer_logits")  # the name is the op's in its package
pytestmark = pytest.mark.skipif(emulator.available() is not None, reason=str(emulator.available()))

SCHEDULES = [("late", 0), ("lowest", 0), ("highest", 0)] + [("random", seed) for seed in range(5)]
# More tiles than the ring has stages, several items per block, ragged edges.
DENSE = (
    IndexerLogitsCase(21, 64 * 14 + 7, windows="random"),
    IndexerLogitsCase(9, 64 * 7 + 1, 64, dtype="bf16", windows="packed"),
)
PAGED = (
    IndexerLogitsPagedCase(5, 64 * 15 - 1, 3),
    IndexerLogitsPagedCase(3, 300, 1, 64, dtype="bf16"),
)
SMALL = (IndexerLogitsCase(13, 64 * 5 + 3, windows="random"), IndexerLogitsCase(5, 150, 64, dtype="bf16"))
SMALL_PAGED = (IndexerLogitsPagedCase(3, 200, 3), IndexerLogitsPagedCase(3, 130, 1, 64, dtype="bf16"))


def _cut(inputs: dict, span_tiles: int, blocks: int) -> torch.Tensor:
    q = inputs["q"]
    if "k" in inputs:
        out = torch.zeros(q.shape[0], inputs["k"].shape[0])
        operands = [inputs["q"], inputs["k"], inputs["weights"], inputs["windows"], inputs.get("k_scales")]
        logits_module._native.indexer_logits_cut(*operands, out, span_tiles, blocks, 0)
        return out
    cache, table = inputs["cache"], inputs["block_table"]
    pages = cache if cache.dtype == torch.uint8 else cache.flatten(1).view(torch.uint8)
    out = torch.zeros(q.shape[0], table.shape[1] * 64)
    operands = [q, inputs["weights"], pages, table, inputs["sequences"], inputs["windows"]]
    logits_module._native.indexer_logits_paged_cut(*operands, out, span_tiles, blocks, 0)
    return out


@pytest.mark.parametrize("case", [*DENSE, *PAGED], ids=str)
def test_any_cut_of_the_work_gives_the_same_bits(case):
    inputs = case.inputs()
    op = indexer_logits if "k" in inputs else indexer_logits_paged
    with emulated():
        expected = op(**inputs)
        for span_tiles, blocks in ((1, 3), (3, 2), (5, 1), (100, 2), (2, 50)):
            harness.check_same_bits(
                f"{span_tiles} tiles, {blocks} blocks", [_cut(inputs, span_tiles, blocks)], [expected]
            )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.parametrize("case", [*SMALL, *SMALL_PAGED], ids=str)
def test_every_schedule_gives_the_same_bits(case, schedule):
    inputs = case.inputs()
    with emulated():
        expected = _cut(inputs, 2, 2)
    with emulated(schedule=schedule[0], seed=schedule[1]):
        harness.check_same_bits(f"schedule {schedule}", [_cut(inputs, 2, 2)], [expected])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s[0]}-{s[1]}")
@pytest.mark.parametrize(
    ("op", "case"),
    [
        (indexer_logits_bwd, IndexerLogitsBwdCase(5, 150, windows="random")),
        (indexer_logits_at_bwd, IndexerLogitsAtBwdCase(5, 60, 70, fill="any")),
    ],
    ids=["dense", "at"],
)
def test_every_schedule_gives_the_same_gradient(op, case, schedule):
    inputs = case.inputs()
    with emulated():
        expected = op(**inputs)
    with emulated(schedule=schedule[0], seed=schedule[1]):
        harness.check_same_bits(f"schedule {schedule}", op(**inputs), expected)


@pytest.mark.parametrize("dtype", ["e4m3", "bf16"])
@pytest.mark.parametrize("keys", [1, 63, 64, 65, 127, 128, 129, 192])
def test_tiles_end_where_keys_do(keys, dtype):
    for tokens in (1, 7, 8, 9):
        case = IndexerLogitsCase(tokens, keys, dtype=dtype, windows="full")
        inputs = case.inputs()
        with emulated():
            got = indexer_logits(**inputs)
            alone = torch.cat([indexer_logits(**_rows(inputs, t)) for t in range(tokens)])
        harness.check_same_bits(f"{tokens} tokens", [got], [alone])


def _rows(inputs: dict, token: int) -> dict:
    return {n: v[token : token + 1].clone() if n in ("q", "weights", "windows") else v for n, v in inputs.items()}


def test_windows_are_cut_to_the_keys():
    inputs = IndexerLogitsCase(10, 100).inputs()
    wild = [[-5, 30], [90, 2**31 - 1], [-(2**31), 2**31 - 1], [50, 20], [100, 200], [-9, -3], [3, 3], [2**31 - 1, -1]]
    cut = [[0, 30], [90, 100], [0, 100], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    inputs["windows"] = torch.tensor([*wild, [0, 100], [7, 8]], dtype=torch.int32)
    tame = dict(inputs, windows=torch.tensor([*cut, [0, 100], [7, 8]], dtype=torch.int32))
    with emulated():
        harness.check_same_bits("wild windows", [indexer_logits(**inputs)], [indexer_logits(**tame)])


def test_windows_are_cut_to_the_keys_for_the_gradient_too():
    inputs = IndexerLogitsBwdCase(4, 100).inputs()
    inputs["d_out"] = inputs["d_out"].nan_to_num(1.0)
    wild = torch.tensor([[-5, 30], [90, 2**31 - 1], [50, 20], [100, 200]], dtype=torch.int32)
    tame = torch.tensor([[0, 30], [90, 100], [0, 0], [0, 0]], dtype=torch.int32)
    with emulated():
        expected = indexer_logits_bwd(**(inputs | {"windows": tame}))
        harness.check_same_bits("wild windows", indexer_logits_bwd(**(inputs | {"windows": wild})), expected)


@pytest.mark.parametrize("dtype", ["e4m3", "bf16"])
def test_keys_of_pages_that_do_not_exist_are_left_out(dtype):
    case = IndexerLogitsPagedCase(3, 300, 2, dtype=dtype, ragged=False)
    inputs = case.inputs()
    with emulated():
        expected = indexer_logits_paged(**inputs)
    wrong = dataclasses.replace(case).inputs()
    pages = inputs["cache"].shape[0]
    for (sequence, page), value in zip(((0, 1), (1, 0), (2, 4)), (pages, -1, -(2**31)), strict=True):
        wrong["block_table"][sequence, page] = value
        expected[2 * sequence : 2 * sequence + 2, 64 * page : 64 * page + 64] = float("-inf")
    wrong["sequences"][4:] = torch.tensor([3, -1], dtype=torch.int32)
    expected[4:] = float("-inf")
    with emulated():
        harness.check_same_bits("wrong pages", [indexer_logits_paged(**wrong)], [expected])


def test_a_cache_without_pages_has_no_keys():
    inputs = IndexerLogitsPagedCase(2, 100).inputs()
    inputs["cache"] = inputs["cache"][:0]
    with emulated():
        assert bool((indexer_logits_paged(**inputs) == float("-inf")).all())


def test_scales_may_start_anywhere():
    inputs = IndexerLogitsCase(9, 150).inputs()
    with emulated():
        expected = indexer_logits(**inputs)
        for shift in (1, 2, 3):
            moved = torch.full((160,), float("nan"))
            moved[shift : shift + 150] = inputs["k_scales"]
            got = indexer_logits(**dict(inputs, k_scales=moved[shift : shift + 150]))
            harness.check_same_bits(f"scales from {shift} on", [got], [expected])


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        (IndexerLogitsCase(4, 70, 32, 64), "dim must be 128 on CUDA, got 64"),
        (IndexerLogitsCase(4, 70, 16), "heads must be 32 or 64 on CUDA, got 16"),
        (IndexerLogitsPagedCase(2, 70, heads=128), "heads must be 32 or 64 on CUDA, got 128"),
    ],
    ids=str,
)
def test_sizes_that_cuda_does_not_take_are_answered_with_a_sentence(case, sentence):
    inputs = case.inputs()
    with emulated():
        message = harness.message_of(indexer_logits if "k" in inputs else indexer_logits_paged, **inputs)
    assert sentence in message


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda i: i | {"q": torch.cat([i["q"], i["q"]], -1)[..., 8:136]}, "q must start at a multiple of 16 bytes"),
        (
            lambda i: i | {"k": torch.cat([i["k"], i["k"]], -1)[:, :136].contiguous()[:, :128]},
            "the stride of k must be a positive multiple of 16 elements",
        ),
        (
            lambda i: i | {"k_scales": torch.stack([i["k_scales"]] * 2, 1)[:, 0]},
            "k_scales must have unit stride on CUDA, got 2",
        ),
    ],
)
def test_layouts_that_cuda_does_not_take_are_answered_with_a_sentence(change, sentence):
    inputs = change(IndexerLogitsCase(4, 70).inputs())
    with emulated():
        assert sentence in harness.message_of(indexer_logits, **inputs)
