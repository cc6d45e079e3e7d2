"""Cases of indexer_topk and indexer_topk_paged."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import SelectionRule, same_bits
from glm5_ops.workloads._indexer import DenseCase, PagedCase, exact_scores
from glm5_ops.workloads._workload import Workload


@dataclass(frozen=True)
class IndexerTopkCase(DenseCase):
    """`plateau`: queries that few keys answer, so that most scores are 0 and the cut lies among these."""

    topk: int = 2048
    optional: bool = True  # margins and fingerprints too
    plateau: bool = False

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        if self.plateau:
            answering = torch.arange(self.keys) % 23 == 5
            inputs["q"] = inputs["q"].float().abs().to(inputs["q"].dtype)
            inputs["k"] = (inputs["k"].float().abs() * torch.where(answering, 1, -1)[:, None]).to(inputs["k"].dtype)
        scales = {"k_scales": inputs.pop("k_scales")} if "k_scales" in inputs else {}
        return {**inputs, "topk": self.topk, **scales, "margins": self.optional, "fingerprints": self.optional}

    def bytes_moved(self) -> int:
        return self.input_bytes() + self.tokens * self.topk * 4


@dataclass(frozen=True)
class IndexerTopkPagedCase(PagedCase):
    topk: int = 2048
    physical: bool = False
    optional: bool = True

    def make(self, generator: torch.Generator) -> dict:
        options = {"physical": self.physical, "margins": self.optional, "fingerprints": self.optional}
        return {**super().make(generator), "topk": self.topk, **options}

    def bytes_moved(self) -> int:
        return self.input_bytes() + self.sequences * self.queries * self.topk * 4


EDGES = (
    *(IndexerTopkCase(tokens, keys, dtype=dtype, topk=topk)
      for tokens, keys, topk in ((0, 40, 8), (3, 0, 4), (1, 1, 1), (5, 33, 40), (7, 130, 128), (37, 200, 3))
      for dtype in ("e4m3", "bf16")),
    *(IndexerTopkCase(21, 150, windows=windows, topk=40) for windows in ("full", "empty", "random", "packed")),
    *(IndexerTopkCase(2, 2300, windows="full", topk=topk) for topk in (1, 3, 512, 2047, 2048, 4096)),
    IndexerTopkCase(20, 90, dtype="bf16", topk=16, heads=64, strided=True),
    IndexerTopkCase(20, 90, dtype="bf16", topk=30, fill="nan"),
    IndexerTopkCase(20, 90, dtype="bf16", topk=30, fill="inf"),
    IndexerTopkCase(9, 700, topk=200, plateau=True),
    IndexerTopkCase(5, 60, topk=9, optional=False),
)  # fmt: skip
# Sizes that the CPU kernels take and the CUDA kernels do not.
ANY_SIZES = tuple(
    IndexerTopkCase(tokens, keys, heads, dim, dtype, "random", topk=topk)
    for tokens, keys, heads, dim, topk in ((9, 170, 1, 128, 20), (9, 70, 5, 40, 33), (3, 1100, 17, 300, 500))
    for dtype in ("e4m3", "bf16")
)
GLM5 = (
    IndexerTopkCase(4096, 4096, optional=False),
    IndexerTopkCase(4096, 4096, dtype="bf16", optional=False),
    IndexerTopkCase(1024, 16384, optional=False),
    IndexerTopkCase(1, 65536, optional=False),
)
EDGES_PAGED = tuple(
    IndexerTopkPagedCase(sequences, length, queries, dtype=dtype, topk=topk, physical=physical)
    for sequences, length, queries, topk in ((0, 64, 1, 4), (1, 1, 1, 1), (3, 130, 2, 50), (2, 300, 3, 256))
    for dtype in ("e4m3", "bf16")
    for physical in (False, True)
)
GLM5_PAGED = (
    IndexerTopkPagedCase(1, 65536, optional=False, ragged=False),
    IndexerTopkPagedCase(16, 16384, optional=False, ragged=False),
    IndexerTopkPagedCase(4, 16384, 4, optional=False, ragged=False),
)
RULE = SelectionRule(
    same_bits, "every chosen score is at least every other of its window, but for the error of f32", exact_scores
)
WORKLOADS = {
    "indexer_topk": Workload(
        IndexerTopkCase, EDGES, GLM5, RULE, rows=("q", "weights", "windows"), row_dim=0
    ),
    "indexer_topk_paged": Workload(
        IndexerTopkPagedCase, EDGES_PAGED, GLM5_PAGED, RULE, rows=("q", "weights", "sequences", "windows"), row_dim=0
    ),
}  # fmt: skip
