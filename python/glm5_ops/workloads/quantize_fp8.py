"""Cases of quantize_fp8."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class QuantizeCase(Case):
    """`fill` chooses the numbers: normal, zeros, special (inf, NaN, -0, subnormals), tiny, huge, midpoints."""

    rows: int
    cols: int
    group: str = "1x128"
    dtype: str = "bf16"
    power_of_two: bool = False
    fill: str = "normal"
    experts: int = 0
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        x = numbers(self.fill, self.rows, self.cols + 8 * self.strided, generator).to(DTYPES[self.dtype])
        inputs = {"x": x[:, : self.cols], "group": self.group, "power_of_two": self.power_of_two, "amax_floor": 1e-4}
        if self.experts:
            cuts = torch.randint(0, self.rows + 1, (self.experts - 1,), generator=generator).sort().values
            ends = torch.tensor([0, self.rows])
            inputs["offsets"] = torch.cat([ends[:1], cuts, ends[1:]]).int()
        return inputs

    def bytes_moved(self) -> int:
        return self.rows * self.cols * (DTYPES[self.dtype].itemsize + 1)


def numbers(fill: str, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """A matrix that is hard in the way `fill` says."""
    x = torch.randn(rows, cols, generator=generator)
    if fill == "zeros":
        return torch.where(x > 0, 0.0, -0.0)
    if fill == "tiny":
        return x * 2.0**-130
    if fill == "huge":
        return x * 2.0**120
    if fill == "midpoints":
        # with a power-of-two scale, quotients halfway between neighbours of e4m3: they show the rounding rule
        steps = torch.randint(-31, 32, (rows, cols), generator=generator)
        return steps * 2.0 ** torch.randint(-12, 4, (rows, cols), generator=generator)
    if fill == "special":
        odd = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 2.0**-140, 448.0, 0.0])
        pick = torch.randint(0, 40, (rows, cols), generator=generator)
        return torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
    return x


_FILLS = tuple(
    QuantizeCase(130, 300, group, dtype, power_of_two, fill)
    for group in ("1x128", "128x128", "128x1")
    for dtype in ("bf16", "f16", "f32")
    for power_of_two, fill in ((False, "special"), (True, "midpoints"))
)
_SHAPES = tuple(
    QuantizeCase(rows, cols, group)
    for group in ("1x128", "128x128", "128x1")
    for rows, cols in ((0, 128), (3, 0), (1, 1), (1, 127), (129, 1), (576, 200), (64, 640))
)
EDGES = (
    *_SHAPES,
    *_FILLS,
    *(QuantizeCase(70, 257, group, "f32", fill=fill) for group in ("1x128", "128x128", "128x1")
      for fill in ("zeros", "tiny", "huge", "normal")),
    *(QuantizeCase(70, 257, group, "bf16", strided=True) for group in ("1x128", "128x128", "128x1")),
    QuantizeCase(500, 96, "128x1", experts=5),
    QuantizeCase(300, 33, "128x1", "f32", True, "special", experts=9),
)  # fmt: skip
GLM5 = (
    *(QuantizeCase(4096, 6144, group) for group in ("1x128", "128x128", "128x1")),
    QuantizeCase(16, 6144),
    QuantizeCase(576, 6144, "128x128"),
)
WORKLOADS = {"quantize_fp8": Workload(QuantizeCase, EDGES, GLM5, BITS)}
