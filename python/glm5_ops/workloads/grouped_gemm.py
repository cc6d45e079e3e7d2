"""Cases of grouped_gemm: its forward in three layouts, and its weight's gradient."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import WITHIN_TORCH
from glm5_ops.workloads._workload import Case, Workload
from glm5_ops.workloads.fp8_gemm import DTYPES, ceil128, columns

NAN = 0x7F


@dataclass(frozen=True)
class GroupedGemmCase(Case):
    """`kind` is of rows and weights: bf16, fp8 (both e4m3) or w8a16 (bf16 rows, on the CPU alone).

    `spread` says which rows an expert owns: even; random; one (all rows to one expert); empty (every other expert owns
    none); inside (random, with rows before the first expert and after the last, of NaN bytes).
    """

    experts: int
    rows: int
    n: int
    k: int
    kind: str = "bf16"
    out: str = "bf16"
    spread: str = "random"
    transposed: bool = False  # w with unit stride along n
    tokens: int = 0  # rows are gathered from so many
    nan: bool = False  # one among the rows that count

    def make(self, generator: torch.Generator) -> dict:
        offsets = torch.tensor(offsets_of(self.spread, self.experts, self.rows, generator), dtype=torch.int32)
        rows = _narrow(self.kind == "fp8", (self.tokens or self.rows, self.k), generator)
        unowned = torch.ones(self.rows, dtype=torch.bool)
        if self.experts:
            unowned[offsets[0] : offsets[-1]] = False
        if not self.tokens:
            rows.view(torch.uint8)[unowned] = NAN if self.kind == "fp8" else 0xFF
        if self.nan and rows.numel():
            rows.view(torch.uint8)[len(rows) // 2, :2] = NAN if self.kind == "fp8" else 0xFF
        shape = (self.experts, self.k, self.n) if self.transposed else (self.experts, self.n, self.k)
        w = _narrow(self.kind != "bf16", shape, generator)
        inputs = {"rows": rows, "w": w.mT if self.transposed else w, "offsets": offsets, "out_dtype": DTYPES[self.out]}
        if self.kind == "fp8":
            inputs["row_scales"] = columns(_scales((len(rows), ceil128(self.k)), generator))
        if self.kind != "bf16":
            inputs["w_scales"] = _scales((self.experts, ceil128(self.n), ceil128(self.k)), generator)
        if self.tokens:
            inputs["row_tokens"] = torch.randint(0, self.tokens, (self.rows,), generator=generator).int()
            inputs["row_tokens"][unowned] = -7
        return inputs

    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    def bytes_moved(self) -> int:
        """Of the weights, those of as many experts as can have rows."""
        weights = min(self.experts, self.rows) * self.n * self.k * (2 if self.kind == "bf16" else 1)
        rows = (self.tokens or self.rows) * self.k * (1 if self.kind == "fp8" else 2)
        return weights + rows + self.rows * self.n * DTYPES[self.out].itemsize


@dataclass(frozen=True)
class GroupedGemmIntoCase(GroupedGemmCase):
    """The same with a given output."""

    accumulate: bool = True

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        out = torch.randn(self.rows, self.n + 8, generator=generator).to(inputs.pop("out_dtype"))[:, : self.n]
        return {**inputs, "out": out, "accumulate": self.accumulate}


@dataclass(frozen=True)
class GroupedGemmMaskedCase(Case):
    """Every expert has room for `max_rows` rows; those beyond its count are NaN."""

    experts: int
    max_rows: int
    n: int
    k: int
    kind: str = "bf16"
    out: str = "bf16"

    def make(self, generator: torch.Generator) -> dict:
        counts = torch.randint(0, self.max_rows + 1, (self.experts,), generator=generator).int()
        counts[: self.experts // 3] = self.max_rows
        counts[self.experts // 3 : self.experts // 2] = 0
        rows = _narrow(self.kind == "fp8", (self.experts, self.max_rows, self.k), generator)
        for e, count in enumerate(counts.tolist()):
            rows.view(torch.uint8)[e, count:] = NAN if self.kind == "fp8" else 0xFF
        w = _narrow(self.kind != "bf16", (self.experts, self.n, self.k), generator)
        inputs = {"rows": rows, "w": w, "counts": counts, "out_dtype": DTYPES[self.out]}
        if self.kind == "fp8":
            inputs["row_scales"] = columns(_scales((self.experts * self.max_rows, ceil128(self.k)), generator))
        if self.kind != "bf16":
            inputs["w_scales"] = _scales((self.experts, ceil128(self.n), ceil128(self.k)), generator)
        return inputs

    def flops(self) -> int:
        return 2 * self.experts * self.max_rows * self.n * self.k

    def bytes_moved(self) -> int:
        weights = self.experts * self.n * self.k * (2 if self.kind == "bf16" else 1)
        rows = self.experts * self.max_rows * self.k * (1 if self.kind == "fp8" else 2)
        return weights + rows + self.experts * self.max_rows * self.n * DTYPES[self.out].itemsize


@dataclass(frozen=True)
class GroupedWgradCase(Case):
    """dw[e] = a[:, of e] @ b[:, of e].T. bf16 operands are views of row-major rows, as the gradient has them."""

    experts: int
    rows: int
    n: int
    k: int
    kind: str = "bf16"
    out: str = "bf16"
    spread: str = "random"

    def make(self, generator: torch.Generator) -> dict:
        offsets = torch.tensor(offsets_of(self.spread, self.experts, self.rows, generator), dtype=torch.int32)
        inputs = {}
        for name, size in (("a", self.n), ("b", self.k)):
            if self.kind == "fp8":
                inputs[name] = _narrow(True, (size, self.rows), generator)
                groups = self.rows // 128 + self.experts
                inputs[f"{name}_scales"] = columns(_scales((size, groups), generator))
            else:
                inputs[name] = _narrow(False, (self.rows, size), generator).mT
            x = inputs[name].mT if self.kind == "bf16" else inputs[name]
            outside = torch.ones(self.rows, dtype=torch.bool)
            outside[offsets[0] : offsets[-1]] = False
            if self.kind == "fp8":
                x.view(torch.uint8)[:, outside] = NAN
            else:
                x.view(torch.uint8)[outside] = 0xFF
        return {**inputs, "offsets": offsets, "out_dtype": DTYPES[self.out]}

    def flops(self) -> int:
        return 2 * self.rows * self.n * self.k

    def bytes_moved(self) -> int:
        operands = (self.n + self.k) * self.rows * (1 if self.kind == "fp8" else 2)
        return operands + self.experts * self.n * self.k * DTYPES[self.out].itemsize


@dataclass(frozen=True)
class GroupedWgradIntoCase(GroupedWgradCase):
    """The same with a given output."""

    accumulate: bool = True

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        out = torch.randn(self.experts, self.n, self.k, generator=generator).to(inputs.pop("out_dtype"))
        return {**inputs, "out": out, "accumulate": self.accumulate}


def offsets_of(spread: str, experts: int, rows: int, generator: torch.Generator) -> list[int]:
    if experts == 0:
        return [0]
    first, last = (rows // 5, rows - rows // 4) if spread == "inside" else (0, rows)
    if spread == "one":
        return [0] * (experts // 2 + 1) + [rows] * (experts - experts // 2)
    if spread == "even":
        return [rows * e // experts for e in range(experts + 1)]
    cuts = torch.randint(first, last + 1, (experts - 1,), generator=generator).sort().values.tolist()
    if spread == "empty":
        cuts = [cuts[e // 2 * 2] for e in range(experts - 1)]
    return [first, *cuts, last]


def _narrow(is_e4m3: bool, shape: tuple, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(shape, generator=generator)
    return (x * 100).clamp(-448, 448).to(torch.float8_e4m3fn) if is_e4m3 else x.to(torch.bfloat16)


def _scales(shape: tuple, generator: torch.Generator) -> torch.Tensor:
    return torch.exp2(torch.randn(shape, generator=generator)) * 0.01


_KINDS = ("bf16", "fp8")
EDGES = (
    *(GroupedGemmCase(*sizes, kind) for kind in _KINDS
      for sizes in ((0, 5, 8, 16), (3, 0, 8, 16), (3, 5, 0, 16), (1, 1, 1, 16), (4, 9, 72, 304), (3, 150, 136, 272))),
    *(GroupedGemmCase(5, 70, 100, 208, kind, "f32", spread) for kind in _KINDS
      for spread in ("even", "one", "empty", "inside")),
    *(GroupedGemmCase(3, 40, 72, 272, kind, tokens=17, spread="inside") for kind in _KINDS),
    *(GroupedGemmCase(3, 40, 72, 272, kind, nan=True) for kind in _KINDS),
    GroupedGemmCase(2, 7, 24, 0),
    GroupedGemmCase(3, 40, 72, 88, transposed=True),
    GroupedGemmCase(2, 300, 96, 128, spread="inside"),
)  # fmt: skip
# bf16 rows with e4m3 weights: on the CPU alone, so not among the edges that every machine gets.
EDGES_W8A16 = (
    *(GroupedGemmCase(*sizes, "w8a16") for sizes in ((1, 1, 1, 16), (4, 9, 70, 300), (3, 150, 130, 272))),
    GroupedGemmCase(5, 70, 100, 200, "w8a16", "f32", "inside"),
    GroupedGemmCase(3, 40, 72, 272, "w8a16", tokens=17, nan=True),
)
# Eight experts of GLM-5's size and 64 smaller ones, with 8 experts for each token.
GLM5 = tuple(
    GroupedGemmCase(experts, tokens * 8, n, k, kind, spread="even" if experts == 8 else "random")
    for experts, sizes in ((8, ((4096, 6144), (6144, 2048))), (64, ((1536, 2048),)))
    for n, k in sizes
    for kind in _KINDS
    for tokens in (1, 16, 64, 512)
)
EDGES_INTO = tuple(
    GroupedGemmIntoCase(4, rows, n, k, kind, out, "inside", accumulate=accumulate)
    for rows, n, k in ((0, 16, 16), (9, 40, 144), (90, 136, 256))
    for kind, out in (("bf16", "bf16"), ("fp8", "f32"), ("fp8", "bf16"))
    for accumulate in (True, False)
)
EDGES_MASKED = (
    *(GroupedGemmMaskedCase(*sizes, kind) for kind in _KINDS
      for sizes in ((0, 4, 8, 16), (3, 0, 8, 16), (6, 4, 72, 272), (4, 136, 40, 128))),
)  # fmt: skip
_WGRAD_SIZES = ((3, 0, 8, 16), (1, 16, 8, 8), (3, 160, 72, 136), (4, 144, 136, 40))
EDGES_WGRAD = (
    *(GroupedWgradCase(*sizes) for sizes in _WGRAD_SIZES),
    *(GroupedWgradCase(5, 208, 72, 40, "bf16", "f32", spread) for spread in ("even", "one", "empty", "inside")),
)
# e4m3 operands: on the CPU alone, so not among the edges that every machine gets.
EDGES_WGRAD_FP8 = (
    *(GroupedWgradCase(*sizes, "fp8") for sizes in _WGRAD_SIZES),
    *(GroupedWgradCase(5, 208, 72, 40, "fp8", "f32", spread) for spread in ("even", "one", "empty", "inside")),
)
EDGES_WGRAD_INTO = tuple(
    GroupedWgradIntoCase(3, rows, 40, 72, kind, out, accumulate=accumulate)
    for rows in (0, 48, 304)
    for kind, out in (("bf16", "bf16"), ("bf16", "f32"))
    for accumulate in (True, False)
)
GLM5_WGRAD = tuple(
    GroupedWgradCase(8, 4096, n, k, kind, "f32", "even") for n, k in ((4096, 6144), (6144, 2048)) for kind in _KINDS
)
WORKLOADS = {
    "grouped_gemm": Workload(GroupedGemmCase, EDGES, GLM5, WITHIN_TORCH),
    "grouped_gemm_into": Workload(
        GroupedGemmIntoCase, EDGES_INTO, (GroupedGemmIntoCase(8, 512, 4096, 6144, "fp8"),), WITHIN_TORCH, writes="out"
    ),
    "grouped_gemm_masked": Workload(
        GroupedGemmMaskedCase,
        EDGES_MASKED,
        tuple(GroupedGemmMaskedCase(8, 16, 4096, 6144, kind) for kind in _KINDS),
        WITHIN_TORCH,
    ),
    "grouped_gemm_wgrad": Workload(GroupedWgradCase, EDGES_WGRAD, GLM5_WGRAD, WITHIN_TORCH),
    "grouped_gemm_wgrad_into": Workload(
        GroupedWgradIntoCase,
        EDGES_WGRAD_INTO,
        (GroupedWgradIntoCase(8, 4096, 6144, 2048, "bf16", "f32", "even"),),
        WITHIN_TORCH,
        writes="out",
    ),
}
