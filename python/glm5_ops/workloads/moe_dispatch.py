"""Cases of moe_dispatch and of moe_sort, its form without rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload


@dataclass(frozen=True)
class MoeSortCase(Case):
    """`fill` chooses the ids: spread (distinct in a row, of all), same (one expert for all), dropped (a third are -1),
    any (any number at all). `local` experts are served, from `first_expert` on; 0: all."""

    tokens: int
    topk: int = 8
    experts: int = 256
    fill: str = "spread"
    first_expert: int = 0
    local: int = 0

    def make(self, generator: torch.Generator) -> dict:
        ids = expert_ids(self.tokens, self.topk, self.experts, self.fill, generator)
        return {"experts": ids, "num_experts": self.local or self.experts, "first_expert": self.first_expert}

    def bytes_moved(self) -> int:
        return 12 * self.tokens * self.topk


@dataclass(frozen=True)
class MoeDispatchCase(MoeSortCase):
    hidden: int = 6144
    dtype: str = "bf16"
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        width = self.hidden + 16 * self.strided
        x = torch.randn(self.tokens, width, generator=generator)[:, : self.hidden]
        if self.dtype == "bf16":
            return {"x": x.bfloat16() if not self.strided else _strided(x, torch.bfloat16), **super().make(generator)}
        scales = torch.rand((self.hidden + 127) // 128, (self.tokens + 3) // 4 * 4, generator=generator)
        scales = scales.t()[: self.tokens]
        return {"x": _strided(x, torch.float8_e4m3fn), **super().make(generator), "scales": scales}

    def bytes_moved(self) -> int:
        row = self.hidden * 2 if self.dtype == "bf16" else self.hidden + (self.hidden + 127) // 128 * 4
        return self.tokens * (1 + self.topk) * row + super().bytes_moved()


def _strided(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the type, with the strides that it has."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)


def expert_ids(tokens: int, topk: int, experts: int, fill: str, generator: torch.Generator) -> Tensor:
    if fill == "same":
        return torch.full((tokens, topk), experts // 2, dtype=torch.int32)
    if fill == "any":
        ids = torch.randint(-(2**31), 2**31, (tokens, topk), generator=generator)
        near = torch.randint(-2, experts + 2, (tokens, topk), generator=generator)
        return torch.where(torch.rand(tokens, topk, generator=generator) < 0.3, ids, near).int()
    ids = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :topk].int().contiguous()
    if fill == "dropped":
        ids[torch.rand(tokens, topk, generator=generator) < 1 / 3] = -1
    return ids


def _edges(case: type[MoeSortCase], **more: object) -> tuple:
    return (
        *(case(tokens, **more) for tokens in (0, 1, 3, 40)),
        *(case(30, 4, 16, fill, **more) for fill in ("spread", "same", "dropped", "any")),
        *(case(30, 4, 16, fill, 5, 7, **more) for fill in ("spread", "same", "dropped", "any")),
        case(6, 1, 1, **more),
        case(5, 0, 4, **more),
        case(20, 3, 1024, **more),
        case(20, 3, 5, "same", 9, 4, **more),
    )


EDGES_SORT = (
    *_edges(MoeSortCase),
    *(MoeSortCase(300, 8, 256, fill) for fill in ("spread", "same", "dropped", "any")),
    MoeSortCase(1030, 4, 40, "dropped", 3, 30),
)
EDGES = (
    *_edges(MoeDispatchCase, hidden=256),
    *_edges(MoeDispatchCase, hidden=256, dtype="e4m3"),
    *(MoeDispatchCase(17, 4, 16, "dropped", hidden=hidden, dtype=dtype, strided=strided)
      for hidden in (0, 1, 7, 136, 200) for dtype in ("bf16", "e4m3") for strided in (False, True)),
    MoeDispatchCase(600, 4, 16, hidden=64),
)  # fmt: skip
GLM5 = (MoeDispatchCase(4096), MoeDispatchCase(4096, dtype="e4m3"), MoeDispatchCase(1), MoeDispatchCase(128))
GLM5_SORT = (MoeSortCase(4096), MoeSortCase(128))
WORKLOADS = {
    "moe_dispatch": Workload(MoeDispatchCase, EDGES, GLM5, BITS),
    "moe_sort": Workload(MoeSortCase, EDGES_SORT, GLM5_SORT, BITS),
}
