"""Every comparator is shown rejecting a wrong answer, and the harness is shown running what it says it runs."""

import dataclasses

import pytest
import torch

import glm5_ops
from glm5_ops import _native, reference
from glm5_ops.workloads._compare import same_bits, selected_by_score, within_torch
from glm5_ops.workloads._indexer import exact_scores
from glm5_ops.workloads.fp8_gemm import Fp8GemmCase
from glm5_ops.workloads.indexer_topk import IndexerTopkCase, IndexerTopkPagedCase
from glm5_ops.workloads.quantize_fp8 import QuantizeCase
from tests import harness


def test_same_bits_sees_one_flipped_bit_a_sign_of_zero_a_dtype_and_a_shape():
    x = torch.randn(5, 7)
    assert same_bits(x.clone(), x).passed
    flipped = x.clone()
    flipped.view(torch.int32)[2, 3] ^= 1
    verdict = same_bits(flipped, x)
    assert not verdict.passed and verdict.error == 1 and "[2, 3]" in verdict.detail
    assert not same_bits(torch.tensor([-0.0]), torch.tensor([0.0])).passed
    assert not same_bits(x.double(), x).passed
    assert not same_bits(x[:4], x).passed


def test_same_bits_takes_nan_for_nan_and_for_nothing_else():
    nan = torch.tensor([float("nan")])
    assert same_bits(nan, -nan).passed
    assert not same_bits(nan, torch.tensor([float("inf")])).passed and not same_bits(torch.tensor([0.0]), nan).passed


def _product() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = torch.randn(40, 600), torch.randn(600, 50)
    exact = a.double() @ b.double()
    return (a @ b).bfloat16(), exact, (a @ b).bfloat16()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda got, exact: (
            exact.to(torch.float32).view(torch.int32).bitwise_and(-65536).view(torch.float32)
        ),  # truncated
        lambda got, exact: got.roll(1, 0),  # rows swapped
        lambda got, exact: got * 1.02,
        lambda got, exact: torch.where(torch.eye(40, 50) > 0, 0, got),
        lambda got, exact: got.index_fill(0, torch.tensor([3]), float("nan")),
        lambda got, exact: got[:39],
    ],
)
def test_within_torch_rejects(spoil):
    got, exact, torchs = _product()
    assert within_torch(got, exact, torchs).passed
    assert not within_torch(spoil(got, exact), exact, torchs, factor=1.7).passed


def test_within_torch_wants_nan_where_nan_belongs():
    got, exact, torchs = _product()
    exact[0, 0] = float("nan")
    assert not within_torch(got, exact, torchs).passed
    got[0, 0] = float("nan")
    assert within_torch(got, exact, torchs).passed


def test_within_torch_wants_infinity_where_it_belongs_and_with_its_sign():
    got, exact, torchs = _product()
    got[:, 3:5] = exact[:, 3:5] = float("-inf")
    assert within_torch(got, exact, torchs).passed
    for row, column, value in ((0, 3, "inf"), (0, 3, "nan"), (39, 4, "0"), (7, 2, "-inf"), (7, 5, "inf")):
        wrong = got.clone()
        wrong[row, column] = float(value)
        verdict = within_torch(wrong, exact, torchs)
        assert not verdict.passed and f"[{row}, {column}]" in verdict.detail


def _change(row: int, place: int, value: int):
    def change(indices, margins, fingerprints):
        indices[row, place] = value

    return change


def _swap_for_a_worse(indices, margins, fingerprints):
    left = sorted(set(range(200)) - set(indices[30].tolist()))
    indices[30] = torch.tensor(sorted([*indices[30, 1:].tolist(), left[0]]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda indices, margins, fingerprints: indices.copy_(torch.arange(16)),  # the first keys
        lambda indices, margins, fingerprints: indices.copy_(indices.roll(1, 0)),  # another row's
        lambda indices, margins, fingerprints: indices.copy_(indices.flip(1)),  # not ascending
        _swap_for_a_worse,
        _change(30, 3, -1),
        _change(0, 15, 199),  # outside the window
        lambda indices, margins, fingerprints: indices[20].fill_(int(indices[20, 0])),  # one key, many times
        lambda indices, margins, fingerprints: margins.mul_(1.01),
        lambda indices, margins, fingerprints: fingerprints[7].add_(1),
    ],
)
@pytest.mark.parametrize("paged", [False, True])
def test_selected_by_score_rejects(spoil, paged):
    op, case = ("indexer_topk", IndexerTopkCase(36, 200, topk=16))
    if paged:
        op, case = "indexer_topk_paged", IndexerTopkPagedCase(1, 200, 36, topk=16, physical=True, ragged=False)
    inputs = case.inputs()
    if paged:  # slots are positions here
        order = inputs["block_table"][0, :4].long()
        inputs["cache"], inputs["block_table"] = inputs["cache"][order], torch.arange(4).int()[None]
    got = getattr(reference, op)(**inputs)
    assert selected_by_score(got, *exact_scores(inputs), inputs).passed
    spoil(*got)
    assert not selected_by_score(got, *exact_scores(inputs), inputs).passed


def test_selected_by_score_knows_the_order_of_what_is_no_number():
    inputs = {"windows": torch.tensor([[0, 4]]), "topk": 2}
    scores = torch.tensor([[float("nan"), float("-inf"), 1.0, float("-inf")]]).double()
    none = torch.empty(0)
    for chosen, right in (([1, 2], True), ([2, 3], True), ([0, 2], False), ([1, 3], False)):
        got = torch.tensor([chosen]).int(), none, none
        assert selected_by_score(got, scores, torch.ones(1), inputs).passed == right


@pytest.mark.parametrize("op", ["quantize_fp8", "fp8_gemm"])
def test_a_wrong_op_fails_its_check(op, monkeypatch):
    """The checks of the harness, given an op with one small fault."""
    case = QuantizeCase(9, 200) if op == "quantize_fp8" else Fp8GemmCase(9, 30, 200)
    target = harness.Target("cpu-generic", isa="generic")
    right = getattr(glm5_ops, op)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        outputs = result if isinstance(result, tuple) else (result,)
        outputs[0].view(torch.uint8)[-1, -1] ^= 0x40
        return result

    harness.check_matches_reference(op, case, target)
    monkeypatch.setattr(glm5_ops, op, wrong)
    with pytest.raises(AssertionError, match="DISAGREES"):
        harness.check_matches_reference(op, case, target)


def test_an_op_that_depends_on_the_batch_fails_its_check(monkeypatch):
    case, target = Fp8GemmCase(20, 30, 200), harness.Target("cpu-generic", isa="generic")
    harness.check_rows_do_not_depend_on_the_batch("fp8_gemm", case, target)
    monkeypatch.setattr(
        glm5_ops, "fp8_gemm", lambda **inputs: reference.fp8_gemm(**inputs) * (1 + len(inputs["a"]) % 2)
    )
    with pytest.raises(AssertionError, match="elements differ"):
        harness.check_rows_do_not_depend_on_the_batch("fp8_gemm", case, target)


def test_an_op_that_changes_from_run_to_run_fails_its_check(monkeypatch):
    case, target = Fp8GemmCase(20, 30, 200), harness.Target("cpu-generic", isa="generic")
    calls = iter(range(10))
    monkeypatch.setattr(glm5_ops, "fp8_gemm", lambda **inputs: reference.fp8_gemm(**inputs) + next(calls))
    with pytest.raises(AssertionError, match="elements differ"):
        harness.check_repeats("fp8_gemm", case, target)


def test_a_target_limits_the_instruction_set_while_it_is_active():
    before = _native.current_isa()
    with harness.Target("cpu-generic", isa="generic").active():
        assert _native.current_isa() == 0
    assert _native.current_isa() == before == _native.detected_isa()


def test_every_case_of_every_op_can_be_named_and_read_back():
    for workload in harness.WORKLOADS.values():
        for case in (*workload.edges, *workload.glm5):
            assert workload.case.parse(str(case)) == case


def test_cases_are_the_same_numbers_every_time():
    for workload in harness.WORKLOADS.values():
        case = workload.edges[1]
        for one, other in zip(case.inputs().values(), case.inputs().values(), strict=True):
            assert not isinstance(one, torch.Tensor) or same_bits(one, other).passed
        seeded = dataclasses.replace(case, seed=case.seed + 1)
        assert str(seeded).endswith("seed=1")
