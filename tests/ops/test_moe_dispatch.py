import pytest
import torch

from glm5_ops import moe_combine, moe_dispatch, moe_sort, quantize_fp8, reference
from glm5_ops.workloads.moe_dispatch import EDGES, EDGES_SORT, MoeDispatchCase, MoeSortCase
from tests import harness
from tests.harness import over

DISPATCH, SORT = "moe_dispatch", "moe_sort"
FILLS = ("spread", "same", "dropped", "any")


@over(EDGES)
def test_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference(DISPATCH, case, target)


@over(EDGES_SORT)
def test_sort_matches_the_reference_to_the_bit(case, target):
    harness.check_matches_reference(SORT, case, target)


@over([MoeDispatchCase(700, 8, 64, fill, 3, 50, hidden=512) for fill in FILLS], harness.CPUS)
def test_rows_too_many_for_caches_match_the_reference(case, target):
    harness.check_matches_reference(DISPATCH, case, target)


@over([MoeDispatchCase(40, 4, 16, fill, hidden=136, dtype=dtype) for fill in FILLS for dtype in ("bf16", "e4m3")])
def test_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(DISPATCH, case, target)
    harness.check_thread_count_does_not_matter(DISPATCH, case, target)


@over([MoeDispatchCase(40, 4, 16, fill, 2, 11, hidden=64) for fill in FILLS])
def test_rows_lie_as_promised(case, target):
    inputs = case.inputs(target.device)
    rows, _, slots, offsets, row_tokens = (t.cpu() for t in moe_dispatch(**inputs))
    ids, x = inputs["experts"].cpu(), inputs["x"].cpu()
    expected, next_row = torch.full_like(slots, -1), 0
    for e in range(11):
        assert int(offsets[e]) == next_row
        for t, k in (ids == 2 + e).nonzero().tolist():  # tokens first, then k
            expected[t, k], next_row = next_row, next_row + 1
    assert int(offsets[11]) == next_row and torch.equal(slots, expected)
    assert (row_tokens[next_row:] == -1).all() and not rows[next_row:].any()
    assert torch.equal(rows[:next_row], x[row_tokens[:next_row].long()])


@over([MoeDispatchCase(40, 4, 16, "dropped", hidden=64)])
def test_the_form_without_rows_has_the_same_permutation(case, target):
    inputs = case.inputs(target.device)
    harness.check_same_bits("moe_sort", moe_sort(inputs["experts"], 16), moe_dispatch(**inputs)[2:])


@over([MoeDispatchCase(30, 4, 16, hidden=200)])
def test_a_token_moves_with_its_scales(case, target):
    inputs = case.inputs(target.device)
    values, scales = quantize_fp8(inputs.pop("x"), "1x128")
    rows, row_scales, slots, _, _ = moe_dispatch(values, **inputs, scales=scales)
    places = slots.flatten().long()
    expected = [t.repeat_interleave(4, dim=0) for t in (values.view(torch.uint8), scales)]
    harness.check_same_bits("rows", [rows.view(torch.uint8)[places], row_scales[places]], expected)
    assert row_scales.stride(0) == 1


@over([MoeDispatchCase(20, 4, 16, fill, hidden=136) for fill in ("spread", "dropped")])
def test_gradient_is_a_combine_with_weights_of_one(case, target):
    inputs = case.inputs(target.device)
    leaf = inputs.pop("x").requires_grad_()
    rows, _, slots, offsets, _ = moe_dispatch(leaf, **inputs)
    d_rows = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2)).bfloat16().to(target.device)
    d_rows[int(offsets[-1]) :] = float("nan")  # no token has these rows
    rows.backward(d_rows)
    ones = torch.ones(slots.shape, device=target.device)
    harness.check_same_bits("d_x", [leaf.grad], [moe_combine(d_rows, slots, ones)])
    exact = leaf.detach().double().requires_grad_()
    reference.moe_dispatch(exact, **inputs)[0].backward(d_rows.double())
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=2**-8, atol=1e-6)


@over([MoeDispatchCase(20, 4, 16, hidden=64)])
def test_dispatch_and_combine_are_the_identity(case, target):
    inputs = case.inputs(target.device)
    rows, _, slots, _, _ = moe_dispatch(**inputs)
    back = moe_combine(rows, slots, torch.full(slots.shape, 0.25, device=target.device))
    harness.check_same_bits("back", [back], [inputs["x"]])


def test_many_slabs_of_one_sort_agree_with_one():
    """On CUDA 2048 assignments share a block; on a CPU nothing differs."""
    case = MoeSortCase(1500, 4, 30, "any", 2, 25)
    harness.check_same_bits(SORT, moe_sort(**case.inputs()), reference.moe_sort(**case.inputs()))


X, IDS = torch.zeros(3, 256).bfloat16(), torch.zeros(3, 2, dtype=torch.int32)
FP8, SCALES = X.to(torch.float8_e4m3fn), torch.ones(2, 4).t()[:3]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": X.float()}, "x must be bf16|e4m3[tokens, hidden]"),
        ({"experts": IDS.long()}, "experts must be i32[tokens, topk]"),
        ({"experts": IDS[:2]}, "experts must be i32[tokens, topk], row-major, where tokens is 3"),
        ({"scales": SCALES}, "scales must be given with e4m3 and only then"),
        ({"x": FP8}, "scales must be given with e4m3 and only then; got None"),
        ({"x": FP8, "scales": SCALES[:, :1]}, "scales must be f32[tokens, ceil(hidden/128)]"),
        ({"num_experts": 1025}, "num_experts must be 0 .. 1024; got 1025"),
        ({"first_expert": -1}, "first_expert must be 0 or more; got -1"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(moe_dispatch, **({"x": X, "experts": IDS, "num_experts": 4} | change))
    assert message.startswith("moe_dispatch: ") and sentence in message


def test_registration():
    x, ids = torch.randn(8, 130).bfloat16(), torch.randint(-1, 4, (8, 2), dtype=torch.int32)
    harness.check_registration(DISPATCH, x, ids, 4, 0, None)
    harness.check_registration(DISPATCH, x.to(torch.float8_e4m3fn), ids, 4, 0, torch.ones(2, 8).t())
    harness.check_registration(SORT, ids, 4, 0)


def test_registration_of_the_gradient():
    x, ids = torch.randn(8, 130).bfloat16().requires_grad_(), torch.randint(-1, 4, (8, 2), dtype=torch.int32)
    harness.check_registration(DISPATCH, x, ids, 3, 1, None)
