"""Cases of swiglu, of its quantised form and of its gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glm5_ops.workloads._compare import WITHIN_TORCH, Rule, Verdict, in_f64
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class SwigluCase(Case):
    """`fill`: normal; wide (gates from -200 to 200); special (with infinities and NaN). Rows from `live` on (-1: none)
    belong to no expert and hold NaN."""

    rows: int
    intermediate: int
    dtype: str = "bf16"
    fill: str = "normal"
    limit: float = 0.0  # 0: none
    live: int = -1
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        x = torch.randn(self.rows, 2 * self.intermediate + 8 * self.strided, generator=generator)
        if self.fill == "wide":
            x = x * 60
        if self.fill == "special":
            odd = torch.tensor([float("inf"), float("nan"), -0.0, 0.0, 88.5])
            pick = torch.randint(0, 60, x.shape, generator=generator)
            x = torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
        inputs = {"limit": self.limit or None}
        if self.live >= 0:
            x[self.live :] = float("nan")
            inputs["offsets"] = torch.tensor([0, self.live // 3, self.live // 3, self.live], dtype=torch.int32)
        return {"gate_up": x.to(DTYPES[self.dtype])[:, : 2 * self.intermediate], **inputs}

    def bytes_moved(self) -> int:
        return self.rows * self.intermediate * 2 * (DTYPES[self.dtype].itemsize + 1)


@dataclass(frozen=True)
class SwigluFp8Case(SwigluCase):
    power_of_two: bool = False

    def make(self, generator: torch.Generator) -> dict:
        return super().make(generator) | {"power_of_two": self.power_of_two}

    def bytes_moved(self) -> int:
        return self.rows * self.intermediate * (2 * DTYPES[self.dtype].itemsize + 1)


@dataclass(frozen=True)
class SwigluBwdCase(SwigluCase):
    def make(self, generator: torch.Generator) -> dict:
        d_out = torch.randn(self.rows, self.intermediate, generator=generator).bfloat16()
        if self.live >= 0:
            d_out[self.live :] = float("nan")
        return {"d_out": d_out, **super().make(generator)}

    def bytes_moved(self) -> int:
        return self.rows * self.intermediate * 2 * (2 * DTYPES[self.dtype].itemsize + 1)


class DequantizedRule(Rule):
    """What values and scales stand for, against the product in f64."""

    def judge(self, reference: Callable, run: Callable, inputs: dict, got: tuple[Tensor, ...]) -> Verdict:
        expected = run(reference, inputs)
        for g, e in zip(got, expected, strict=True):
            if (g.dtype, g.shape, g.device) != (e.dtype, e.shape, e.device):
                return Verdict(False, float("inf"), 1, "bounds", f"{g.dtype}{list(g.shape)}")
        given = in_f64({n: v for n, v in inputs.items() if n != "power_of_two"})
        gate, up = given["gate_up"].cpu().chunk(2, dim=1)
        if given["limit"] is not None:
            gate, up = gate.clamp(max=given["limit"]), up.clamp(-given["limit"], given["limit"])
        exact = torch.nn.functional.silu(gate) * up
        if given.get("offsets") is not None:
            exact[int(given["offsets"][-1]) :] = 0
        scales = got[1].cpu().double().repeat_interleave(128, dim=1)[:, : exact.shape[1]]
        values = got[0].cpu().float().double() * scales
        finite = exact.isfinite()
        if not torch.equal(values.isfinite(), finite):
            return Verdict(False, float("inf"), 1, "bounds", "NaN stands where a number should, or the other way round")
        # half a step of e4m3 and of bf16; below the normal numbers of e4m3 half of 2^-9 scales
        allowed = exact.abs() * (2**-4 + 2**-8) + scales * 2**-9.9
        error = ((values - exact).abs() / allowed)[finite]
        coarse = (got[1].cpu() / expected[1].cpu()).log2().abs()
        worst = max([float(t.max()) for t in (error, coarse / 1.01) if t.numel()], default=0.0)
        return Verdict(worst <= 1, worst, 1, "bounds")


class SwigluWorkload(Workload):
    def cut_rows(self, inputs: dict, begin: int, end: int) -> dict:
        """Offsets move with the rows."""
        cut = super().cut_rows(inputs, begin, end)
        offsets = cut.get("offsets")
        return cut if offsets is None else cut | {"offsets": (offsets - begin).clamp(0, end - begin)}


_SHAPES = ((0, 128), (3, 0), (1, 1), (1, 127), (5, 129), (33, 200), (17, 1160))


def _edges(case: type[SwigluCase]) -> tuple:
    return (
        *(case(*shape, dtype=dtype) for shape in _SHAPES for dtype in DTYPES),
        *(case(9, 300, dtype, fill, limit)
          for dtype in DTYPES for fill, limit in (("wide", 0.0), ("wide", 7.0), ("special", 0.0), ("special", 10.0))),
        *(case(20, 257, dtype, live=live, strided=True) for dtype in DTYPES for live in (0, 7, 20)),
    )  # fmt: skip


EDGES, EDGES_BWD = _edges(SwigluCase), _edges(SwigluBwdCase)
EDGES_FP8 = (*_edges(SwigluFp8Case), SwigluFp8Case(17, 1160, power_of_two=True))
# 4096 tokens x 8 of GLM-5's experts on one rank of eight; a few tokens; the dense layers' width.
GLM5 = (SwigluCase(4096, 2048), SwigluCase(128, 2048), SwigluCase(1024, 12288))
GLM5_FP8 = (SwigluFp8Case(4096, 2048), SwigluFp8Case(128, 2048))
GLM5_BWD = (SwigluBwdCase(4096, 2048),)
DEQUANTIZED = DequantizedRule(
    None, "e4m3 of a product in f32: half a step of e4m3 from the product in f64; the bits are quantize_fp8's of swiglu"
)
WORKLOADS = {
    "swiglu": SwigluWorkload(SwigluCase, EDGES, GLM5, WITHIN_TORCH, rows=("gate_up",)),
    "swiglu_fp8": SwigluWorkload(SwigluFp8Case, EDGES_FP8, GLM5_FP8, DEQUANTIZED, rows=("gate_up",)),
    "swiglu_bwd": SwigluWorkload(SwigluBwdCase, EDGES_BWD, GLM5_BWD, WITHIN_TORCH, rows=("d_out", "gate_up")),
}
