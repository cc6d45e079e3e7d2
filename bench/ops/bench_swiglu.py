"""swiglu beside torch's operations on bf16, and a copy of the same bytes."""

from glm5_ops.bench.timing import copy_of_the_same_bytes
from torch import Tensor
from torch.nn.functional import silu

from glm5_ops import reference
from glm5_ops.workloads.swiglu import GLM5, SwigluCase


def composed(gate_up: Tensor, **_: object) -> Tensor:
    """As a layer of HF has it: two operations, rounded after each."""
    gate, up = gate_up.chunk(2, dim=1)
    return silu(gate) * up


CASES = GLM5
QUICK = (SwigluCase(128, 2048), SwigluCase(1024, 2048))
BASELINES = {"copy": copy_of_the_same_bytes(reference.swiglu), "torch": composed}
