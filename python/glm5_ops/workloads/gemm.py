"""Cases of gemm and gemm_into."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class GemmCase(Case):
    """`batch` 0 is a plain matrix product. `transposed` operands have unit stride along their first dimension."""

    m: int
    n: int
    k: int
    dtype: str = "bf16"
    out: str = "bf16"
    batch: int = 0
    transposed: str = ""  # "a", "b" or "ab"
    fill: str = "normal"

    def make(self, generator: torch.Generator) -> dict:
        a, b = (self._operand(name, rows, generator) for name, rows in (("a", self.m), ("b", self.n)))
        return {"a": a, "b": b, "out_dtype": DTYPES[self.out]}

    def _operand(self, name: str, rows: int, generator: torch.Generator) -> torch.Tensor:
        batch = (self.batch,) if self.batch else ()
        shape = (*batch, self.k, rows) if name in self.transposed else (*batch, rows, self.k)
        x = torch.randn(shape, generator=generator)
        if self.fill == "nan" and x.numel():
            x.view(-1)[x.numel() // 2] = float("nan")
        if self.fill == "inf" and x.numel():
            x.view(-1)[x.numel() // 2] = float("inf")
        x = x.to(DTYPES[self.dtype])
        return x.mT if name in self.transposed else x

    def flops(self) -> int:
        return 2 * max(1, self.batch) * self.m * self.n * self.k

    def bytes_moved(self) -> int:
        operands = (self.m + self.n) * self.k * DTYPES[self.dtype].itemsize
        return max(1, self.batch) * (operands + self.m * self.n * DTYPES[self.out].itemsize)


@dataclass(frozen=True)
class GemmIntoCase(GemmCase):
    """The same with a given output."""

    accumulate: bool = True

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        shape = (*((self.batch,) if self.batch else ()), self.m, self.n + 8)
        out = torch.randn(shape, generator=generator).to(inputs.pop("out_dtype"))[..., : self.n]
        return {**inputs, "out": out, "accumulate": self.accumulate}


_SHAPES = (
    (0, 8, 8),
    (4, 0, 8),
    (1, 1, 1),
    (1, 70, 300),
    (2, 70, 300),
    (3, 33, 47),
    (17, 130, 272),
    (65, 100, 300),
    (5, 9, 1031),
)
EDGES = (
    *(GemmCase(m, n, k, dtype, out) for m, n, k in _SHAPES for dtype, out in (("bf16", "bf16"), ("f32", "f32"))),
    *(GemmCase(33, 70, 150, dtype, "f32", batch, transposed)
      for dtype in ("bf16", "f32") for batch in (0, 3) for transposed in ("", "a", "b", "ab")),
    *(GemmCase(9, 40, 136, dtype, dtype, fill=fill) for dtype in ("bf16", "f32") for fill in ("nan", "inf")),
    GemmCase(9, 70, 0),
    GemmCase(5, 12, 64, "f32", "bf16"),
    GemmCase(300, 96, 128),
)  # fmt: skip
GLM5 = (
    GemmCase(16, 256, 6144, "f32", "f32"),
    GemmCase(1024, 256, 6144, "f32", "f32"),
    GemmCase(1024, 4096, 6144),
    GemmCase(1024, 6144, 2048),
    GemmCase(256, 2624, 6144),
    GemmCase(256, 512, 192, batch=64, transposed="b"),
    GemmCase(256, 256, 512, batch=64),
)
EDGES_INTO = tuple(
    GemmIntoCase(m, n, k, dtype, out, batch, accumulate=accumulate)
    for m, n, k, batch in ((0, 16, 16, 0), (5, 33, 144, 2), (70, 130, 256, 0))
    for dtype, out in (("bf16", "bf16"), ("f32", "f32"), ("bf16", "f32"))
    for accumulate in (True, False)
)
WORKLOADS = {
    "gemm": Workload(GemmCase, EDGES, GLM5, WITHIN_TORCH, rows=("a",)),
    "gemm_into": Workload(
        GemmIntoCase, EDGES_INTO, (GemmIntoCase(6144, 2048, 1024, "bf16", "f32"),), WITHIN_TORCH, writes="out"
    ),
}
