"""Cases of indexer_logits_at and of its gradient."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._indexer import BYTES, chosen_indices, head_weights, key_scales, values
from glm5_ops.workloads._workload import Case, Workload


@dataclass(frozen=True)
class IndexerLogitsAtCase(Case):
    """`fill`: see ``chosen_indices``."""

    tokens: int
    keys: int
    topk: int
    heads: int = 32
    dim: int = 128
    dtype: str = "bf16"
    fill: str = "chosen"

    def make(self, generator: torch.Generator) -> dict:
        inputs = {
            "q": values((self.tokens, self.heads, self.dim), self.dtype, generator),
            "k": values((self.keys, self.dim), self.dtype, generator),
            "weights": head_weights(self.tokens, self.heads, self.dim, self.dtype, generator),
            "indices": chosen_indices(self.tokens, self.keys, self.topk, self.fill, generator),
        }
        if self.dtype == "e4m3":
            inputs["k_scales"] = key_scales(self.keys, generator)
        return inputs

    def flops(self) -> int:
        return 2 * self.tokens * self.topk * self.heads * self.dim

    def bytes_moved(self) -> int:
        per_key = self.dim * BYTES[self.dtype] + 4 * (self.dtype == "e4m3")
        queries = self.tokens * self.heads * (self.dim * BYTES[self.dtype] + 4)
        return queries + self.keys * per_key + self.tokens * self.topk * 8


@dataclass(frozen=True)
class IndexerLogitsAtBwdCase(IndexerLogitsAtCase):
    """The gradient; beside absent keys d_out holds NaN."""

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        d_out = torch.randn(self.tokens, self.topk, generator=generator)
        indices = inputs["indices"]
        return {"d_out": torch.where((indices >= 0) & (indices < self.keys), d_out, float("nan")), **inputs}

    def flops(self) -> int:
        return 3 * super().flops()

    def bytes_moved(self) -> int:
        return super().bytes_moved() + 2 * self.dim * (self.tokens * self.heads + self.keys)


_SHAPES = ((0, 40, 8, 32), (3, 0, 4, 32), (3, 40, 0, 32), (1, 1, 1, 32), (9, 150, 65, 32), (7, 64, 130, 64))


def _edges(case: type[IndexerLogitsAtCase]) -> tuple:
    return (
        *(case(*shape, dtype=dtype) for shape in _SHAPES for dtype in ("bf16", "e4m3")),
        *(case(6, 40, 70, dtype=dtype, fill=fill) for fill in ("any", "absent", "same") for dtype in ("bf16", "e4m3")),
    )


def _any_sizes(case: type[IndexerLogitsAtCase]) -> tuple:
    return tuple(
        case(4, 50, 20, heads, dim, dtype, "any")
        for heads, dim in ((1, 128), (5, 40), (17, 300), (3, 7))
        for dtype in ("bf16", "e4m3")
    )


EDGES, EDGES_BWD = _edges(IndexerLogitsAtCase), _edges(IndexerLogitsAtBwdCase)
# Sizes that the CPU kernels take and the CUDA kernels do not.
ANY_SIZES, ANY_SIZES_BWD = _any_sizes(IndexerLogitsAtCase), _any_sizes(IndexerLogitsAtBwdCase)
GLM5 = (IndexerLogitsAtCase(256, 16384, 2048), IndexerLogitsAtCase(256, 16384, 2048, dtype="e4m3"))
GLM5_BWD = (IndexerLogitsAtBwdCase(256, 16384, 2048),)
_ROWS = ("q", "weights", "indices")
WORKLOADS = {
    "indexer_logits_at": Workload(IndexerLogitsAtCase, EDGES, GLM5, WITHIN_TORCH, rows=_ROWS, row_dim=0),
    "indexer_logits_at_bwd": Workload(IndexerLogitsAtBwdCase, EDGES_BWD, GLM5_BWD, WITHIN_TORCH),
}
