import pytest
import torch

import glm5_ops
from glm5_ops import indexer_logits, indexer_logits_at, indexer_logits_at_bwd, reference
from glm5_ops.workloads._compare import cosine_difference
from glm5_ops.workloads.indexer_logits_at import (
    ANY_SIZES,
    ANY_SIZES_BWD,
    EDGES,
    EDGES_BWD,
    IndexerLogitsAtBwdCase,
    IndexerLogitsAtCase,
)
from tests import harness
from tests.harness import GPUS, TARGETS, VECTOR_CPUS, over

CPUS = tuple(t for t in TARGETS if t not in GPUS)
BOTH = ("bf16", "e4m3")
FORWARD, BACKWARD = "indexer_logits_at", "indexer_logits_at_bwd"


@over(EDGES)
def test_matches_the_reference(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(ANY_SIZES, CPUS)
def test_matches_the_reference_for_any_sizes_on_a_cpu(case, target):
    harness.check_matches_reference(FORWARD, case, target)


@over(EDGES_BWD)
def test_gradient_matches_the_reference(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over(ANY_SIZES_BWD, CPUS)
def test_gradient_matches_the_reference_for_any_sizes_on_a_cpu(case, target):
    harness.check_matches_reference(BACKWARD, case, target)


@over((*EDGES, *ANY_SIZES), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic(FORWARD, case, target)


@over((*EDGES_BWD, *ANY_SIZES_BWD), VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_gradient(case, target):
    harness.check_same_bits_as_generic(BACKWARD, case, target)


@over([IndexerLogitsAtCase(9, 150, 70, dtype=dtype, fill=fill) for dtype in BOTH for fill in ("chosen", "any")])
def test_has_the_bits_of_indexer_logits(case, target):
    inputs = case.inputs(target.device)
    indices = inputs.pop("indices")
    windows = torch.tensor([[0, case.keys]] * case.tokens, dtype=torch.int32, device=target.device)
    dense = indexer_logits(**inputs, windows=windows)
    present = (indices >= 0) & (indices < case.keys)
    expected = torch.where(present, dense.gather(1, torch.where(present, indices, 0).long()), float("-inf"))
    assert 0 < int(present.sum()) < present.numel()
    harness.check_same_bits(FORWARD, [indexer_logits_at(**inputs, indices=indices)], [expected])


@over([IndexerLogitsAtCase(21, 90, 33, dtype=dtype, fill="any") for dtype in BOTH])
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats(FORWARD, case, target)
    harness.check_thread_count_does_not_matter(FORWARD, case, target)
    harness.check_rows_do_not_depend_on_the_batch(FORWARD, case, target)


@over([IndexerLogitsAtBwdCase(21, 40, 33, dtype=dtype, fill=fill) for dtype in BOTH for fill in ("any", "same")])
def test_gradient_has_the_same_bits_twice_and_with_any_thread_count(case, target):
    harness.check_repeats(BACKWARD, case, target)
    harness.check_thread_count_does_not_matter(BACKWARD, case, target)


@over([IndexerLogitsAtBwdCase(12, 300, 130, fill="any")])
def test_gradients_of_queries_do_not_depend_on_the_batch(case, target):
    inputs = case.inputs(target.device)
    d_q, _, d_weights = indexer_logits_at_bwd(**inputs)
    for begin, end in ((0, 1), (5, 9), (11, 12)):
        part = {n: inputs[n][begin:end] for n in ("d_out", "q", "weights", "indices")}
        d_q_part, _, d_weights_part = indexer_logits_at_bwd(**(inputs | part))
        harness.check_same_bits("d_q and d_weights", [d_q_part, d_weights_part], [d_q[begin:end], d_weights[begin:end]])


@over([IndexerLogitsAtCase(16, 200, 96, fill=fill) for fill in ("chosen", "any")])
def test_autograd_gives_the_gradient_of_the_formula(case, target):
    inputs = case.inputs(target.device)
    names = ("q", "k", "weights")
    leaves = {n: inputs[n].clone().requires_grad_() for n in names}
    exact = {n: inputs[n].double().requires_grad_() for n in names}
    present = (inputs["indices"] >= 0) & (inputs["indices"] < case.keys)
    d_out = torch.randn(case.tokens, case.topk, generator=torch.Generator().manual_seed(5)).to(target.device)
    for function, given in ((indexer_logits_at, leaves), (reference.indexer_logits_at, exact)):
        out = function(**(inputs | given))
        torch.where(present, out, 0.0).backward(d_out.to(out.dtype))
    for name in names:
        # d_q and d_k are rounded to bf16: 2^-9 of a value, which is 4e-6 of a cosine
        assert cosine_difference(leaves[name].grad, exact[name].grad) < 7e-6, name


@over([IndexerLogitsAtCase(5, 60, 40, dtype="e4m3")])
def test_e4m3_trains_the_weights_of_the_heads_alone(case, target):
    inputs = case.inputs(target.device)
    weights = inputs["weights"].clone().requires_grad_()
    out = indexer_logits_at(**(inputs | {"weights": weights}))
    torch.where(out.isfinite(), out, 0.0).sum().backward()
    exact = inputs["weights"].double().requires_grad_()
    expected = reference.indexer_logits_at(**(inputs | {"weights": exact}))
    torch.where(expected.isfinite(), expected, 0.0).sum().backward()
    assert cosine_difference(weights.grad, exact.grad) < 1e-10


@over([IndexerLogitsAtBwdCase(4, 30, 20)])
def test_relu_has_no_slope_at_zero(case, target):
    inputs = case.inputs(target.device)
    inputs["q"].zero_()
    for gradient in indexer_logits_at_bwd(**inputs):
        assert not gradient.any()


@over([IndexerLogitsAtBwdCase(6, 50, 40, fill="chosen")])
def test_keys_that_nobody_chose_get_no_gradient_and_leak_nothing(case, target):
    inputs = case.inputs(target.device)
    chosen = torch.zeros(case.keys, dtype=torch.bool)
    present = inputs["indices"] >= 0
    chosen[inputs["indices"][present].long().cpu()] = True
    assert not bool(chosen.all())
    poisoned = inputs["k"].clone()
    poisoned[~chosen.to(poisoned.device)] = float("nan")
    before, after = indexer_logits_at_bwd(**inputs), indexer_logits_at_bwd(**(inputs | {"k": poisoned}))
    harness.check_same_bits(BACKWARD, after, before)
    assert not before[1][~chosen.to(poisoned.device)].any()


def test_reference_passes_gradcheck_in_f64():
    inputs = IndexerLogitsAtCase(3, 7, 5, 4, 6, fill="any").inputs()
    present = (inputs["indices"] >= 0) & (inputs["indices"] < 7)

    def scores(q, k, weights):
        out = reference.indexer_logits_at(q, k, weights, inputs["indices"])
        return torch.where(present, out, 0.0)

    assert torch.autograd.gradcheck(scores, [inputs[n].double().requires_grad_() for n in ("q", "k", "weights")])


def test_reference_gradient_is_that_of_the_reference():
    inputs = IndexerLogitsAtBwdCase(5, 9, 8, 4, 6, fill="any").inputs()
    leaves = [inputs[n].double().requires_grad_() for n in ("q", "k", "weights")]
    d_out = inputs["d_out"].double()
    out = reference.indexer_logits_at(*leaves, inputs["indices"])
    expected = torch.autograd.grad(torch.where(d_out.isnan(), 0.0, out), leaves, d_out.nan_to_num())
    got = reference.indexer_logits_at_bwd(d_out, *(leaf.detach() for leaf in leaves), inputs["indices"])
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def _right(**change) -> dict:
    return IndexerLogitsAtCase(4, 20, 8).inputs() | change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros(4, 32, 128)}, "q must be e4m3|bf16[tokens, heads, dim]"),
        ({"k": torch.zeros(20, 64).bfloat16()}, "k must be e4m3|bf16[keys, dim]"),
        ({"k": torch.zeros(20, 128).to(torch.float8_e4m3fn)}, "k must be torch.bfloat16 as q is"),
        ({"weights": torch.zeros(4, 31)}, "weights must be f32[tokens, heads]"),
        ({"indices": torch.zeros(4, 8, dtype=torch.int64)}, "indices must be i32[tokens, topk]"),
        ({"indices": torch.zeros(8, 4, dtype=torch.int32).t()}, "indices must be i32[tokens, topk], row-major"),
        ({"k_scales": torch.ones(20)}, "k_scales must be given with e4m3 and only then"),
    ],
)
def test_misuse_is_answered_with_a_sentence(change, sentence):
    message = harness.message_of(indexer_logits_at, **_right(**change))
    assert message.startswith(f"{FORWARD}: ") and sentence in message


def test_scales_of_keys_have_no_gradient():
    inputs = IndexerLogitsAtCase(4, 20, 8, dtype="e4m3").inputs()
    inputs["k_scales"].requires_grad_()
    assert "k_scales must be a tensor that needs no grad" in harness.message_of(indexer_logits_at, **inputs)


def test_registration():
    for dtype in BOTH:
        inputs = IndexerLogitsAtBwdCase(3, 9, 4, 4, 32, dtype).inputs()
        harness.check_registration(BACKWARD, *inputs.values())
        inputs.pop("d_out")
        inputs["weights"].requires_grad_()
        harness.check_registration(FORWARD, *inputs.values())


def test_compiles_and_exports_with_its_gradient():
    class Scores(torch.nn.Module):
        def forward(self, q, k, weights, indices):
            return glm5_ops.indexer_logits_at(q, k, weights, indices).exp()

    inputs = list(IndexerLogitsAtCase(5, 20, 8).inputs().values())
    compiled = torch.compile(Scores(), fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), Scores()(*inputs))
    more = [t.requires_grad_() if t.is_floating_point() else t for t in IndexerLogitsAtCase(7, 30, 9).inputs().values()]
    gradients = [torch.autograd.grad(function(*more).sum(), more[:3]) for function in (compiled, Scores())]
    harness.check_same_bits("gradients", *gradients)
    assert torch.equal(torch.export.export(Scores(), tuple(inputs)).module()(*inputs), Scores()(*inputs))
