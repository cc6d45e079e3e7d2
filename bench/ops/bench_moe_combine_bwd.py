"""moe_combine_bwd beside torch's operations on bf16, and a copy of the same bytes."""

import torch
from glm5_ops.bench.timing import copy_of_the_same_bytes
from torch import Tensor

from glm5_ops import reference
from glm5_ops.workloads.moe_combine import GLM5_BWD, MoeCombineBwdCase


def composed(d_out: Tensor, rows: Tensor, slots: Tensor, weights: Tensor | None) -> tuple:
    """What autograd does with a gather, a product and a sum."""
    spread = d_out[:, None].expand(-1, slots.shape[1], -1)
    d_rows = torch.zeros_like(rows)
    if weights is None:
        return d_rows.index_copy_(0, slots.flatten().long(), spread.flatten(0, 1)), None
    d_rows.index_copy_(0, slots.flatten().long(), (spread * weights[..., None].to(rows.dtype)).flatten(0, 1))
    return d_rows, (rows[slots.long()] * spread).sum(2)


CASES = GLM5_BWD
QUICK = (MoeCombineBwdCase(16, 8, 6144), MoeCombineBwdCase(256, 8, 2048, False))
BASELINES = {"copy": copy_of_the_same_bytes(reference.moe_combine_bwd), "torch": composed}
