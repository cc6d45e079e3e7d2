"""Cases of indexer_cache_append."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True)
class AppendCase(Case):
    """Tokens go to slots in random order; every `skip`-th token is skipped. `fill`: normal, special, equal, large."""

    tokens: int
    pages: int
    cache: str = "fp8"
    dtype: str = "bf16"
    weight: str = "f32"
    hadamard: bool = False
    power_of_two: bool = True
    skip: int = 0
    fill: str = "normal"
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        slots = torch.randperm(max(self.pages * 64, self.tokens), generator=generator)[: self.tokens]
        if self.skip:
            slots[:: self.skip] = -1
        weight, bias = (torch.randn(128, generator=generator).to(DTYPES[self.weight]) for _ in range(2))
        return {
            "k": self._keys(generator).to(DTYPES[self.dtype])[:, 16 * self.strided :][:, :128],
            "norm_weight": weight,
            "norm_bias": bias,
            "positions": torch.randint(0, 4096, (self.tokens,), generator=generator).int(),
            "cos_sin": rope_table(4096, 1e6),
            "cache_slots": slots,
            "cache": self._cache(generator),
            "eps": 1e-6,
            "hadamard": self.hadamard,
            "power_of_two": self.power_of_two,
        }

    def _keys(self, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(self.tokens, 128 + 32 * self.strided, generator=generator)
        if self.fill == "equal":  # no variance: eps alone decides
            return torch.ones_like(x) * 3
        if self.fill == "large":
            return x * 1e18  # squares near the end of f32
        if self.fill == "special":
            odd = torch.tensor([float("inf"), float("nan"), 1e-40, -0.0, 0.0])
            pick = torch.randint(0, 400, x.shape, generator=generator)
            return torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
        return x

    def _cache(self, generator: torch.Generator) -> torch.Tensor:
        if self.cache == "bf16":
            return torch.randn(self.pages, 64, 128, generator=generator).bfloat16()
        return torch.randint(0, 255, (self.pages, 64 * 132), generator=generator).to(torch.uint8)

    def bytes_moved(self) -> int:
        stored = 256 if self.cache == "bf16" else 132
        return self.tokens * (128 * DTYPES[self.dtype].itemsize + stored + 256 + 12)


def rope_table(positions: int, base: float) -> torch.Tensor:
    """cos and sin of position * base^(-2i/64): f32[positions, 32, 2]."""
    frequencies = base ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=2).float()


EDGES = (
    AppendCase(0, 1),
    AppendCase(1, 1),
    *(AppendCase(67, 3, cache, dtype, weight, hadamard, skip=5)
      for cache in ("fp8", "bf16")
      for dtype, weight in (("bf16", "f32"), ("f32", "bf16"))
      for hadamard in (False, True)),
    AppendCase(9, 1, dtype="f32", weight="f32", power_of_two=False),
    AppendCase(9, 1, weight="bf16", hadamard=True, power_of_two=False, strided=True),
    *(AppendCase(40, 2, dtype="f32", hadamard=hadamard, fill=fill)
      for fill in ("special", "equal", "large") for hadamard in (False, True)),
    AppendCase(20, 1, "bf16", "f32", fill="special"),
    AppendCase(3, 1, skip=1),
)  # fmt: skip
GLM5 = (AppendCase(4096, 64), AppendCase(4096, 64, hadamard=True), AppendCase(4096, 64, "bf16"), AppendCase(16, 64))
WORKLOADS = {"indexer_cache_append": Workload(AppendCase, EDGES, GLM5, BITS, writes="cache")}
