"""s = sigmoid(z);  chosen by s + bias within the best groups;  w = s / (sum of the chosen s + 1e-20) * scale"""

import torch
from torch import Tensor


def moe_route(
    logits: Tensor,
    bias: Tensor | None,
    topk: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
    replay_experts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = _scores(logits, scoring)
    biased = scores.detach() if bias is None else scores.detach() + bias
    tokens, experts = logits.shape
    grouped = biased.view(tokens, n_group, experts // n_group)
    best_two = _descending(grouped)[..., :2]
    kept = _descending(grouped.gather(2, best_two).sum(dim=2))[:, :topk_group]
    is_kept = torch.zeros(tokens, n_group, dtype=torch.bool, device=logits.device).scatter_(1, kept, True)
    rank = torch.where(is_kept[:, :, None], _rank(grouped), -float("inf")).reshape(tokens, experts)
    chosen = rank.sort(dim=1, descending=True, stable=True).indices[:, :topk]
    if replay_experts is not None:
        given = replay_experts.long()
        chosen = torch.where(given[:, :1] < 0, chosen, given)
    weights = scores.gather(1, chosen)
    if normalize:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
    counts = torch.bincount(chosen.flatten(), minlength=experts)
    return chosen.int(), weights * scale, counts.int()


def moe_route_bwd(
    d_weights: Tensor,
    logits: Tensor,
    chosen: Tensor,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    scores = _scores(logits, scoring)
    is_expert = (chosen >= 0) & (chosen < logits.shape[1])
    ids = torch.where(is_expert, chosen, 0).long()
    s, d = (torch.where(is_expert, x, 0.0) for x in (scores.gather(1, ids), d_weights))
    d_s = d * scale
    if normalize:
        total = s.sum(dim=1, keepdim=True) + 1e-20
        d_s = scale / total * (d - (d * s).sum(dim=1, keepdim=True) / total)
    d_scores = torch.zeros_like(scores).scatter_add_(1, ids, torch.where(is_expert, d_s, 0.0))
    is_chosen = torch.zeros_like(scores).scatter_add_(1, ids, is_expert.to(scores.dtype)) > 0
    if scoring == "softmax":
        return scores * (d_scores - torch.where(is_chosen, d_scores * scores, 0.0).sum(dim=1, keepdim=True))
    return torch.where(is_chosen, d_scores * (scores * (1 - scores)), 0.0)


def _scores(logits: Tensor, scoring: str) -> Tensor:
    return logits.softmax(dim=1) if scoring == "softmax" else logits.sigmoid()


def _rank(scores: Tensor) -> Tensor:
    """Numbers of the same order in f64; below -inf comes NaN."""
    return torch.where(scores.isnan(), -2e300, scores.double().clamp(-1e300, 1e300))


def _descending(scores: Tensor) -> Tensor:
    return _rank(scores).sort(dim=-1, descending=True, stable=True).indices
