"""swiglu_bwd beside autograd of torch's operations on bf16."""

import torch
from glm5_ops.bench.ops.bench_swiglu import composed
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.swiglu import GLM5_BWD, SwigluBwdCase


def autograd(d_out: Tensor, gate_up: Tensor, **_: object):
    """The gradient alone: the forward pass is made beforehand, and its graph kept."""
    leaf = gate_up.clone().requires_grad_()
    out = composed(leaf)
    return lambda: torch.autograd.grad(out, leaf, d_out, retain_graph=True)


CASES = GLM5_BWD
QUICK = (SwigluBwdCase(128, 2048), SwigluBwdCase(1024, 2048))
BASELINES = {"torch autograd": Prepared(autograd)}
