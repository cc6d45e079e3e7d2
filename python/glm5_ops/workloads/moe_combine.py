"""Cases of moe_combine and of its gradient."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._workload import Case, Workload


@dataclass(frozen=True)
class MoeCombineCase(Case):
    """Every (token, k) has a row of its own, in no order; `dropped`: but every third, whose slot is -1 or no row, and
    whose weight is NaN. Some rows belong to nobody and hold NaN."""

    tokens: int
    topk: int
    hidden: int
    weights: bool = True
    shared: bool = False
    dropped: bool = False
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        places, unused = self.tokens * self.topk, 3
        rows = self._matrix(places + unused, generator)
        order = torch.randperm(places + unused, generator=generator).int()
        slots, weights = order[:places].clone(), torch.rand(places, generator=generator)
        rows[order[places:].long()] = float("nan")
        if self.dropped:
            rows[slots[::3].long()] = float("nan")
            nowhere = torch.tensor([-1, places + unused, -(2**31), 2**31 - 1], dtype=torch.int32)
            slots[::3] = nowhere[torch.arange(len(slots[::3])) % 4]
            weights[::3] = float("nan")
        shape = (self.tokens, self.topk)
        inputs = {"rows": rows, "slots": slots.view(shape), "weights": weights.view(shape) if self.weights else None}
        return inputs | self._more(generator)

    def _more(self, generator: torch.Generator) -> dict:
        return {"shared": self._matrix(self.tokens, generator) if self.shared else None}

    def _matrix(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        wide = torch.randn(rows, self.hidden + 5 * self.strided, generator=generator).bfloat16()
        return wide[:, : self.hidden]

    def bytes_moved(self) -> int:
        present = self.tokens * self.topk * (2 if self.dropped else 3) // 3
        return 2 * self.hidden * (present + self.tokens * (1 + self.shared)) + 8 * self.tokens * self.topk


@dataclass(frozen=True)
class MoeCombineBwdCase(MoeCombineCase):
    def _more(self, generator: torch.Generator) -> dict:
        return {"d_out": self._matrix(self.tokens, generator)}

    def bytes_moved(self) -> int:
        places = self.tokens * self.topk
        return 2 * self.hidden * (places * (2 if self.weights else 1) + self.tokens * (1 + self.weights)) + 16 * places


_SHAPES = ((0, 8, 64), (3, 0, 40), (4, 8, 0), (1, 1, 1), (2, 3, 63), (5, 8, 65), (9, 8, 200), (3, 2, 1300))


def _edges(case: type[MoeCombineCase]) -> tuple:
    return (
        *(case(*shape) for shape in _SHAPES),
        case(7, 8, 136, shared=True, dropped=True),
        case(7, 8, 130, weights=False, shared=True, strided=True),
        case(6, 4, 256, weights=False, dropped=True),
        case(6, 4, 129, shared=True, dropped=True, strided=True),
    )


EDGES, EDGES_BWD = _edges(MoeCombineCase), _edges(MoeCombineBwdCase)
# GLM-5's layer: a rank's tokens of a training step; decoding; and the gradient of dispatch (no weights).
GLM5 = (MoeCombineCase(1024, 8, 6144, shared=True), MoeCombineCase(16, 8, 6144), MoeCombineCase(1024, 8, 6144, False))
GLM5_BWD = (MoeCombineBwdCase(1024, 8, 6144), MoeCombineBwdCase(1024, 8, 6144, False))
WORKLOADS = {
    "moe_combine": Workload(MoeCombineCase, EDGES, GLM5, WITHIN_TORCH, rows=("slots", "weights", "shared")),
    "moe_combine_bwd": Workload(MoeCombineBwdCase, EDGES_BWD, GLM5_BWD, WITHIN_TORCH),
}
