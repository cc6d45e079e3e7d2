"""The first topk of each row's window under (score descending, index ascending); -inf, then NaN, rank last."""

import torch
from torch import Tensor

PAGE = 64


def topk_select(
    scores: Tensor,
    topk: int,
    windows: Tensor | None = None,
    block_table: Tensor | None = None,
    sequences: Tensor | None = None,
    margins: bool = False,
    fingerprints: bool = False,
    check_indices: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, keys = scores.shape
    index = torch.arange(keys, device=scores.device)
    if windows is None:
        windows = torch.tensor([[0, keys]], dtype=torch.int32, device=scores.device).expand(rows, 2)
    inside = (index >= windows[:, :1]) & (index < windows[:, 1:])
    # two stable sorts: by score, then by class: a number, NaN, outside
    by_score = scores.nan_to_num(float("-inf"), float("inf"), float("-inf")) + 0.0  # -0 is 0
    order = by_score.sort(dim=1, descending=True, stable=True).indices
    rank = torch.where(inside, scores.isnan().int(), 2).gather(1, order)
    order = order.gather(1, rank.sort(dim=1, stable=True).indices)
    chosen = (torch.arange(keys, device=scores.device) < topk) & inside.gather(1, order)
    logical = torch.where(chosen, order, keys).sort(dim=1).values[:, :topk]
    logical = torch.where(logical < keys, logical, -1)
    logical = torch.nn.functional.pad(logical, (0, topk - logical.shape[1]), value=-1)
    indices = logical
    if block_table is not None:
        pages = block_table[sequences.long()].gather(1, logical.clamp(min=0) // PAGE) if rows and keys else logical
        indices = torch.where(logical < 0, -1, pages * PAGE + logical % PAGE)
    count = chosen.sum(dim=1)
    return (
        indices.int(),
        _margins(scores, order, count, inside) if margins else scores.new_empty(0),
        _fingerprints(logical) if fingerprints else logical.new_empty(0),
    )


def _margins(scores: Tensor, order: Tensor, count: Tensor, inside: Tensor) -> Tensor:
    """The worst chosen score minus the best left out."""
    if scores.shape[1] == 0:
        return scores.new_full(scores.shape[:1], float("inf"))
    ordered = scores.gather(1, order)
    worst = ordered.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    best = ordered.gather(1, count.clamp(max=scores.shape[1] - 1)[:, None])[:, 0]
    equal = (worst == best) | (worst.isnan() & best.isnan())
    margin = torch.where(equal, 0.0, torch.where(best.isnan(), float("inf"), worst - best))
    return torch.where(count < inside.sum(dim=1), margin, float("inf"))


def _fingerprints(logical: Tensor) -> Tensor:
    """The sum over the set of splitmix64's output for each index, mod 2^64."""

    def shifted(z: Tensor, bits: int) -> Tensor:  # as if unsigned
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = (logical + 1) * (0x9E3779B97F4A7C15 - 2**64)
    z = (z ^ shifted(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ shifted(z, 27)) * (0x94D049BB133111EB - 2**64)
    return torch.where(logical < 0, 0, z ^ shifted(z, 31)).sum(dim=1)
