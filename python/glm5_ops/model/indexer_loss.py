"""What the indexer is trained on: the Kullback-Leibler divergence between attention and its scores.

For every query the target p is the attention's probabilities, summed over heads and divided by their sum; the loss is
``KL(p || softmax(scores))`` over the keys both are about (DeepSeek-V3.2 report, section 2.1.1; GLM-5, arXiv 2602.15763,
section 2.1.1). Its gradient for the scores is ``softmax(scores) - p``. Nothing flows into p. The indexer's own inputs
are detached by the caller: the main model learns from its loss alone, the indexer from this one.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import glm5_ops

REDUCTIONS = ("mean", "sum", "none")


def indexer_loss(scores: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """The loss of given scores: of all keys, or of the selected ones (``indexer_logits_at``).

    A key is absent where its score is -inf; what target has there does not count. A row without a key, or whose target
    is all zero, costs nothing and gives no gradient.

    Args:
        scores: [tokens, keys] or [tokens, topk], f32 or f64.
        target: of the same shape, the probabilities summed over heads, 0 or more; need not be normalised.
        reduction: "mean" over tokens (those that cost nothing included), "sum", or "none" for one number per token.

    Raises:
        ValueError: shapes that differ, or another reduction.
    """
    if scores.dim() != 2 or scores.shape != target.shape:
        raise ValueError(
            "indexer_loss: scores and target must have one shape, [tokens, keys]; "
            f"got {list(scores.shape)} and {list(target.shape)}"
        )
    return _reduced(_of_rows(scores, target), reduction)


def blockwise_indexer_loss(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    windows: Tensor,
    target_of: Callable[[int, int], Tensor],
    *,
    block: int = 256,
    reduction: str = "mean",
    ops: ModuleType = glm5_ops,
) -> Tensor:
    """The loss over all keys of the windows, for the dense warm-up, without a tokens x keys matrix.

    Scores are computed for ``block`` queries at a time and again in the backward pass, so that memory is block x keys.

    Args:
        q, k, weights, windows: as for ``indexer_logits``, bf16.
        target_of: ``target_of(begin, end)`` gives the targets of these queries, [end - begin, keys]; called again in
            the backward pass.
        block: queries at a time.
        reduction: as for ``indexer_loss``.
        ops: the library, or ``glm5_ops.reference``.
    """

    def of_block(q_block: Tensor, k: Tensor, weights_block: Tensor, begin: int, end: int) -> Tensor:
        with torch.no_grad():
            target = target_of(begin, end)
        return _of_rows(ops.indexer_logits(q_block, k, weights_block, windows[begin:end]), target)

    losses = [
        checkpoint(of_block, q[begin:end], k, weights[begin:end], begin, end, use_reentrant=False)
        for begin in range(0, len(q), block)
        for end in (min(begin + block, len(q)),)
    ]
    return _reduced(torch.cat(losses) if losses else weights.new_zeros(0), reduction)


def _of_rows(scores: Tensor, target: Tensor) -> Tensor:
    """KL of each row. -inf must meet no subtraction: the gradient through it would be NaN."""
    present = scores.detach() != float("-inf")
    p = torch.where(present, target.detach().to(scores.dtype), 0.0)
    total = p.sum(dim=1, keepdim=True)
    p = torch.where(total > 0, p / total, 0.0)
    counts = present & (total > 0)
    lowest = torch.finfo(scores.dtype).min
    finite = torch.where(counts, scores, lowest)
    log_q = torch.where(counts, finite.log_softmax(dim=1), 0.0)
    return (torch.special.xlogy(p, p) - p * log_q).sum(dim=1)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in REDUCTIONS:
        raise ValueError(f"indexer_loss: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" or not len(losses) else losses.mean()
