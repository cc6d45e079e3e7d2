"""moe_combine beside torch's operations on bf16, and a copy of the same bytes."""

from glm5_ops.bench.timing import copy_of_the_same_bytes
from torch import Tensor

from glm5_ops import reference
from glm5_ops.workloads.moe_combine import GLM5, MoeCombineCase


def composed(rows: Tensor, slots: Tensor, weights: Tensor | None, shared: Tensor | None) -> Tensor:
    """As a layer of HF has it: every row gathered, multiplied, added in bf16."""
    chosen = rows[slots.long()]
    out = (chosen if weights is None else chosen * weights[..., None].to(rows.dtype)).sum(1)
    return out if shared is None else out + shared


CASES = GLM5
QUICK = (MoeCombineCase(16, 8, 6144), MoeCombineCase(256, 8, 2048, shared=True))
BASELINES = {"copy": copy_of_the_same_bytes(reference.moe_combine), "torch": composed}
