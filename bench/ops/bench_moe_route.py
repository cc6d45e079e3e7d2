"""moe_route beside torch's operations, in the composition that HF's router has."""

import torch
from torch import Tensor

from glm5_ops.workloads.moe_route import GLM5, MoeRouteCase


def composed(
    logits: Tensor, bias: Tensor, topk: int, n_group: int, topk_group: int, scale: float, **_: object
) -> tuple[Tensor, Tensor, Tensor]:
    scores = logits.sigmoid()
    biased = scores + bias
    groups = biased.view(len(logits), n_group, -1)
    kept = groups.topk(2, dim=-1)[0].sum(dim=-1).topk(topk_group, dim=-1, sorted=False)[1]
    mask = torch.zeros(len(logits), n_group, device=logits.device).scatter_(1, kept, 1)
    mask = mask.unsqueeze(-1).expand(groups.shape).reshape(biased.shape)
    chosen = biased.masked_fill(~mask.bool(), float("-inf")).topk(topk, dim=-1, sorted=False)[1]
    weights = scores.gather(1, chosen)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * scale
    return chosen, weights, torch.bincount(chosen.flatten(), minlength=logits.shape[1])


CASES = GLM5
QUICK = (MoeRouteCase(16), MoeRouteCase(1024), MoeRouteCase(1024, 256, 8, 8, 4))
BASELINES = {"torch": composed}
