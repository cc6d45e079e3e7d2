"""moe_route_bwd beside autograd of torch's operations from the logits to the weights."""

import torch
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.moe_route import GLM5_BWD, MoeRouteBwdCase


def autograd(d_weights: Tensor, logits: Tensor, chosen: Tensor, scale: float, **_: object):
    """The gradient alone: the forward pass is made beforehand, and its graph kept."""
    leaf = logits.clone().requires_grad_()
    weights = leaf.sigmoid().gather(1, chosen.long())
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * scale
    return lambda: torch.autograd.grad(weights, leaf, d_weights, retain_graph=True)


CASES = GLM5_BWD
QUICK = (MoeRouteBwdCase(16), MoeRouteBwdCase(1024))
BASELINES = {"torch autograd": Prepared(autograd)}
