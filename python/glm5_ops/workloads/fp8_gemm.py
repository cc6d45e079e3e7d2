"""Cases of fp8_gemm and fp8_gemm_into."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# GLM-5's projections, out x in: q_a with kv_a, q_b, kv_b, o_proj, indexer wq_b, indexer wk with weights, shared gate
# and up, shared down, dense gate and up, dense down.
PROJECTIONS = (
    (2624, 6144), (16384, 2048), (28672, 512), (6144, 16384), (4096, 2048), (160, 6144), (4096, 6144), (6144, 2048),
    (24576, 6144), (6144, 12288),
)  # fmt: skip


def ceil128(size: int) -> int:
    return (size + 127) // 128


@dataclass(frozen=True)
class Fp8GemmCase(Case):
    """Values are e4m3 of a normal distribution, scales are spread over a few powers of two."""

    m: int
    n: int
    k: int
    b_scales: str = "128x128"
    out: str = "bf16"
    nan: bool = False
    strided: bool = False
    transposed_scales: bool = False

    def make(self, generator: torch.Generator) -> dict:
        a, b = (self._values(rows, generator) for rows in (self.m, self.n))
        if self.nan and a.numel():
            a.view(torch.uint8)[self.m // 2, self.k // 2] = 0x7F
        scales = {"128x128": ceil128(self.n), "1x128": self.n}[self.b_scales]
        b_scales = _scales(scales, ceil128(self.k), generator)
        if self.b_scales == "1x128":
            b_scales = columns(b_scales)
        elif self.transposed_scales:
            b_scales = b_scales.t().contiguous().t()
        a_scales = columns(_scales(self.m, ceil128(self.k), generator))
        return {"a": a, "a_scales": a_scales, "b": b, "b_scales": b_scales, "out_dtype": DTYPES[self.out]}

    def _values(self, rows: int, generator: torch.Generator) -> torch.Tensor:
        wide = torch.randn(rows, self.k + 16 * self.strided, generator=generator) * 100
        return wide.clamp(-448, 448).to(torch.float8_e4m3fn)[:, : self.k]

    def flops(self) -> int:
        return 2 * self.m * self.n * self.k

    def bytes_moved(self) -> int:
        return (self.m + self.n) * self.k + 4 * self.m * ceil128(self.k) + self.m * self.n * DTYPES[self.out].itemsize


@dataclass(frozen=True)
class Fp8GemmIntoCase(Fp8GemmCase):
    """The same with a given output."""

    accumulate: bool = True

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        dtype = inputs.pop("out_dtype")
        out = torch.randn(self.m, self.n + 8 * self.strided, generator=generator).to(dtype)[:, : self.n]
        return {**inputs, "out": out, "accumulate": self.accumulate}


def _scales(rows: int, groups: int, generator: torch.Generator) -> torch.Tensor:
    return torch.exp2(torch.randn(rows, groups, generator=generator)) * 0.01


def columns(scales: torch.Tensor) -> torch.Tensor:
    """Column-major, as quantize_fp8 stores the scales of rows."""
    rows, groups = scales.shape
    return torch.empty_strided((rows, groups), (1, max(4, (rows + 3) // 4 * 4))).copy_(scales)


_SHAPES = (
    (0, 128, 128), (4, 0, 128), (1, 1, 16), (3, 33, 48), (17, 130, 272), (33, 65, 640), (65, 576, 256), (5, 7, 2064),
)  # fmt: skip
EDGES = (
    *(Fp8GemmCase(m, n, k, b_scales) for m, n, k in _SHAPES for b_scales in ("128x128", "1x128")),
    *(Fp8GemmCase(37, 100, 400, b_scales, out="f32", strided=True) for b_scales in ("128x128", "1x128")),
    Fp8GemmCase(9, 70, 0),
    Fp8GemmCase(20, 150, 304, transposed_scales=True),
    Fp8GemmCase(20, 150, 304, nan=True),
    Fp8GemmCase(300, 96, 128),
)  # fmt: skip
GLM5 = tuple(Fp8GemmCase(m, n, k) for n, k in PROJECTIONS for m in (1, 16, 256, 1024))
EDGES_INTO = tuple(
    Fp8GemmIntoCase(m, n, k, b_scales, out, strided=strided, accumulate=accumulate)
    for m, n, k in ((0, 16, 16), (5, 33, 144), (70, 130, 256))
    for b_scales in ("128x128", "1x128")
    for out, strided in (("bf16", True), ("f32", False))
    for accumulate in (True, False)
)
WORKLOADS = {
    "fp8_gemm": Workload(Fp8GemmCase, EDGES, GLM5, WITHIN_TORCH, rows=("a", "a_scales")),
    "fp8_gemm_into": Workload(
        Fp8GemmIntoCase, EDGES_INTO, (Fp8GemmIntoCase(6144, 2048, 4096, "1x128", "f32"),), WITHIN_TORCH, writes="out"
    ),
}
