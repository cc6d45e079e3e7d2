"""Cases of dequantize_fp8."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


@dataclass(frozen=True)
class DequantizeCase(Case):
    """All 256 bytes occur among the values."""

    rows: int
    cols: int
    group: str = "1x128"
    dtype: str = "bf16"
    experts: int = 0

    def make(self, generator: torch.Generator) -> dict:
        shape = (self.cols, self.rows) if self.group == "128x1" else (self.rows, self.cols)
        values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).view(torch.float8_e4m3fn)
        groups = (shape[0] + 127) // 128 if self.group == "128x128" else shape[0], (shape[1] + 127) // 128
        if self.experts:
            groups = groups[0], self.rows // 128 + self.experts
        scales = torch.exp2(torch.randn(groups, generator=generator) * 4)
        inputs = {"values": values, "scales": scales, "group": self.group, "dtype": DTYPES[self.dtype]}
        if self.experts:
            cuts = torch.randint(0, self.rows + 1, (self.experts + 1,), generator=generator).sort().values
            inputs["offsets"] = cuts.int()
        return inputs

    def bytes_moved(self) -> int:
        return self.rows * self.cols * (DTYPES[self.dtype].itemsize + 1)


_SHAPES = tuple(
    DequantizeCase(rows, cols, group, dtype)
    for group in ("1x128", "128x128", "128x1")
    for dtype in ("bf16", "f16", "f32")
    for rows, cols in ((0, 128), (1, 1), (130, 300), (576, 129))
)
EDGES = (
    *_SHAPES,
    DequantizeCase(500, 96, "128x1", experts=5),
    DequantizeCase(300, 33, "128x1", "f32", experts=1),
)
GLM5 = tuple(DequantizeCase(4096, 6144, group) for group in ("1x128", "128x128", "128x1"))
WORKLOADS = {"dequantize_fp8": Workload(DequantizeCase, EDGES, GLM5, BITS)}
