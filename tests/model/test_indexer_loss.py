import pytest
import torch

from glm5_ops import reference
from glm5_ops.model.indexer_loss import blockwise_indexer_loss, indexer_loss

NONE = float("-inf")


def _scores_and_target(tokens=5, keys=17):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(tokens, keys, generator=generator, dtype=torch.float64)
    scores[torch.rand(tokens, keys, generator=generator) < 0.3] = NONE
    target = torch.rand(tokens, keys, generator=generator, dtype=torch.float64) * 3
    return scores, target


def test_is_the_divergence_over_the_present_keys():
    scores, target = _scores_and_target()
    losses = indexer_loss(scores, target, "none")
    for row, p, loss in zip(scores, target, losses, strict=True):
        present = row != NONE
        p, q = p[present] / p[present].sum(), row[present].softmax(0)
        torch.testing.assert_close(loss, (p * (p / q).log()).sum(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(indexer_loss(scores, target), losses.mean())
    torch.testing.assert_close(indexer_loss(scores, target, "sum"), losses.sum())


def test_gradient_is_softmax_minus_target():
    scores, target = _scores_and_target()
    leaf = scores.clone().requires_grad_()
    target.requires_grad_()
    indexer_loss(leaf, target, "sum").backward()
    p = torch.where(scores == NONE, 0.0, target.detach())
    expected = scores.softmax(1) - p / p.sum(1, keepdim=True)
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-12, atol=1e-14)
    assert target.grad is None


def test_passes_gradcheck():
    scores, target = _scores_and_target(4, 9)
    present = scores != NONE

    def loss(values):
        return indexer_loss(torch.where(present, values, NONE), target, "none")

    values = torch.where(present, scores, 0.0).requires_grad_()
    assert torch.autograd.gradcheck(loss, values)


@pytest.mark.parametrize("row", ["no key", "no target", "a target at absent keys alone"])
def test_a_row_that_says_nothing_costs_nothing(row):
    scores, target = _scores_and_target(3, 6)
    scores[1] = NONE if row == "no key" else 0.5
    if row == "a target at absent keys alone":
        scores[1, 2:] = NONE
        target[1, :2] = 0
    else:
        target[1] = 0 if row == "no target" else 1
    leaf = scores.requires_grad_()
    losses = indexer_loss(leaf, target, "none")
    losses.sum().backward()
    assert losses[1] == 0 and torch.equal(leaf.grad[1], torch.zeros(6, dtype=torch.float64))
    assert losses[0] > 0 and bool(leaf.grad.isfinite().all())


def test_equal_distributions_cost_nothing():
    scores, _ = _scores_and_target()
    target = 7 * scores.softmax(1)
    assert float(indexer_loss(scores, target, "none").abs().max()) < 1e-14


def test_no_rows():
    empty = torch.zeros(0, 4)
    assert indexer_loss(empty, empty) == 0 and indexer_loss(empty, empty, "none").shape == (0,)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_blocks_change_nothing_but_memory(block):
    generator = torch.Generator().manual_seed(2)
    tokens, keys, heads, dim = 7, 11, 4, 8
    q, k, weights = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((tokens, heads, dim), (keys, dim), (tokens, heads))
    )
    windows = torch.tensor([[max(0, t - 4), min(keys, t + 3)] for t in range(tokens)], dtype=torch.int32)
    target = torch.rand(tokens, keys, generator=generator, dtype=torch.float64)
    whole = indexer_loss(reference.indexer_logits(q, k, weights, windows), target)
    expected = torch.autograd.grad(whole, (q, k, weights))
    asked = []

    def target_of(begin, end):
        asked.append((begin, end))
        return target[begin:end]

    loss = blockwise_indexer_loss(q, k, weights, windows, target_of, block=block, ops=reference)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, (q, k, weights)), expected)
    assert max(end - begin for begin, end in asked) <= block and len(asked) == 2 * -(-tokens // block)


def test_misuse_is_answered_with_a_sentence():
    with pytest.raises(ValueError, match=r"indexer_loss: scores and target must have one shape.*\[2, 3\] and \[2, 4\]"):
        indexer_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none; got 'median'"):
        indexer_loss(torch.zeros(2, 3), torch.zeros(2, 3), "median")
