"""Cases of indexer_logits, of its gradient, and of indexer_logits_paged."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._indexer import DenseCase, PagedCase
from glm5_ops.workloads._workload import Workload


@dataclass(frozen=True)
class IndexerLogitsCase(DenseCase):
    def bytes_moved(self) -> int:
        return self.input_bytes() + self.tokens * self.keys * 4


@dataclass(frozen=True)
class IndexerLogitsBwdCase(IndexerLogitsCase):
    """The gradient; outside the windows d_out holds NaN."""

    dtype: str = "bf16"

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        d_out = torch.randn(self.tokens, self.keys, generator=generator)
        s, windows = torch.arange(self.keys), inputs["windows"]
        inside = (s >= windows[:, :1]) & (s < windows[:, 1:])
        return {"d_out": torch.where(inside, d_out, float("nan")), **inputs}

    def flops(self) -> int:
        return 3 * super().flops()

    def bytes_moved(self) -> int:
        return super().bytes_moved() + 2 * self.dim * (self.tokens * self.heads + self.keys)


@dataclass(frozen=True)
class IndexerLogitsPagedCase(PagedCase):
    def bytes_moved(self) -> int:
        row = (max(self.lengths(), default=0) + 127) // 64 * 64
        return self.input_bytes() + self.sequences * self.queries * row * 4


_SHAPES = ((0, 40, 32), (3, 0, 32), (1, 1, 32), (5, 33, 32), (7, 130, 64), (37, 200, 32))
EDGES = (
    *(IndexerLogitsCase(tokens, keys, heads, dtype=dtype) for tokens, keys, heads in _SHAPES
      for dtype in ("e4m3", "bf16")),
    *(IndexerLogitsCase(21, 150, 32, 128, dtype, windows) for dtype in ("e4m3", "bf16")
      for windows in ("full", "empty", "random", "packed")),
    *(IndexerLogitsCase(20, 90, dtype=dtype, fill="nan", strided=True) for dtype in ("e4m3", "bf16")),
    IndexerLogitsCase(20, 90, dtype="bf16", fill="inf"),
)  # fmt: skip
# Sizes that the CPU kernels take and the CUDA kernels do not.
ANY_SIZES = tuple(
    IndexerLogitsCase(tokens, keys, heads, dim, dtype, "random")
    for tokens, keys, heads, dim in ((9, 70, 1, 128), (9, 70, 5, 40), (70, 33, 3, 7), (4, 50, 17, 300), (3, 20, 130, 1))
    for dtype in ("e4m3", "bf16")
)
EDGES_BWD = (
    *(IndexerLogitsBwdCase(tokens, keys, heads, dtype=dtype) for tokens, keys, heads in _SHAPES
      for dtype in ("bf16", "e4m3")),
    *(IndexerLogitsBwdCase(21, 150, 32, 128, dtype, windows) for dtype in ("bf16", "e4m3")
      for windows in ("full", "empty", "random", "packed")),
    IndexerLogitsBwdCase(70, 90, windows="random"),
    IndexerLogitsBwdCase(12, 90, strided=True),
)  # fmt: skip
ANY_SIZES_BWD = tuple(
    IndexerLogitsBwdCase(5, keys, heads, dim, dtype, "random")
    for keys, heads, dim in ((70, 1, 128), (70, 5, 40), (33, 3, 7), (50, 17, 300), (20, 130, 1))
    for dtype in ("bf16", "e4m3")
)
GLM5_BWD = (IndexerLogitsBwdCase(1024, 1024), IndexerLogitsBwdCase(256, 8192, windows="full"))
GLM5 = (
    IndexerLogitsCase(1024, 1024),
    IndexerLogitsCase(4096, 4096),
    IndexerLogitsCase(4096, 4096, dtype="bf16"),
    IndexerLogitsCase(1024, 16384),
    IndexerLogitsCase(1024, 4096, heads=64),
)
EDGES_PAGED = (
    *(IndexerLogitsPagedCase(sequences, length, queries, heads, dtype=dtype)
      for sequences, length, queries, heads in ((0, 64, 1, 32), (1, 1, 1, 32), (3, 130, 2, 32), (5, 200, 1, 64))
      for dtype in ("e4m3", "bf16")),
    *(IndexerLogitsPagedCase(2, 150, queries) for queries in (3, 4, 5, 6, 7, 8)),
)  # fmt: skip
ANY_SIZES_PAGED = tuple(
    IndexerLogitsPagedCase(3, 150, 2, heads, dim, dtype)
    for heads, dim in ((1, 128), (5, 40), (3, 7))
    for dtype in ("e4m3", "bf16")
)
GLM5_PAGED = (
    IndexerLogitsPagedCase(1, 16384, ragged=False),
    IndexerLogitsPagedCase(16, 8192, ragged=False),
    IndexerLogitsPagedCase(4, 8192, queries=4, ragged=False),
    IndexerLogitsPagedCase(16, 8192, dtype="bf16", ragged=False),
)
WORKLOADS = {
    "indexer_logits": Workload(
        IndexerLogitsCase, EDGES, GLM5, WITHIN_TORCH, rows=("q", "weights", "windows"), row_dim=0
    ),
    "indexer_logits_bwd": Workload(IndexerLogitsBwdCase, EDGES_BWD, GLM5_BWD, WITHIN_TORCH),
    "indexer_logits_paged": Workload(
        IndexerLogitsPagedCase, EDGES_PAGED, GLM5_PAGED, WITHIN_TORCH,
        rows=("q", "weights", "sequences", "windows"), row_dim=0,
    ),
}  # fmt: skip
