"""Cases of mla_cache_append."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload
from glm5_ops.workloads.indexer_cache_append import DTYPES, rope_table


@dataclass(frozen=True)
class AppendCase(Case):
    """Tokens go to slots in random order; every `skip`-th token is skipped. `fill`: normal, special, zero, large."""

    tokens: int
    pages: int
    cache: str = "fp8"
    dtype: str = "bf16"
    weight: str = "bf16"
    power_of_two: bool = False
    skip: int = 0
    fill: str = "normal"
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        slots = torch.randperm(max(self.pages * 64, self.tokens), generator=generator)[: self.tokens]
        if self.skip:
            slots[:: self.skip] = -1
        return {
            "kv": self._latents(generator).to(DTYPES[self.dtype])[:, 64 * self.strided :][:, :576],
            "norm_weight": (1 + torch.randn(512, generator=generator) / 4).to(DTYPES[self.weight]),
            "positions": torch.randint(0, 4096, (self.tokens,), generator=generator).int(),
            "cos_sin": rope_table(4096, 1e6),
            "cache_slots": slots,
            "cache": random_cache(self.cache, self.pages, generator),
            "eps": 1e-5,
            "power_of_two": self.power_of_two,
        }

    def _latents(self, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(self.tokens, 576 + 64 * self.strided, generator=generator)
        if self.fill == "zero":  # eps alone decides; scales are those of the floor
            return torch.zeros_like(x)
        if self.fill == "large":
            return x * 1e18  # the sum of squares is near the end of f32, and beyond it in some rows
        if self.fill == "special":
            odd = torch.tensor([float("inf"), float("nan"), 1e-40, -0.0, 0.0])
            pick = torch.randint(0, 1600, x.shape, generator=generator)
            return torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
        return x

    def bytes_moved(self) -> int:
        stored = 1152 if self.cache == "bf16" else 656
        return self.tokens * (576 * DTYPES[self.dtype].itemsize + stored + 256 + 12)


def random_cache(kind: str, pages: int, generator: torch.Generator) -> torch.Tensor:
    """A cache with something in every row: all e4m3 codes, scales of all sizes, finite rope."""
    rope = torch.randn(pages, 64, 64, generator=generator).bfloat16()
    if kind == "bf16":
        return torch.cat((torch.randn(pages, 64, 512, generator=generator).bfloat16(), rope), dim=2)
    values = torch.randint(0, 256, (pages, 64, 512), generator=generator).to(torch.uint8)
    scales = torch.exp2(torch.randint(-20, 3, (pages, 64, 4), generator=generator).float())
    scales = scales * (1 + torch.rand(pages, 64, 4, generator=generator))
    return torch.cat((values, scales.view(torch.uint8), rope.view(torch.uint8)), dim=2)


EDGES = (
    AppendCase(0, 1),
    AppendCase(1, 1),
    *(AppendCase(67, 3, cache, dtype, weight, skip=5)
      for cache in ("fp8", "bf16")
      for dtype, weight in (("bf16", "f32"), ("f32", "bf16"), ("bf16", "bf16"))),
    AppendCase(9, 1, dtype="f32", weight="f32", power_of_two=True),
    AppendCase(9, 1, strided=True),
    *(AppendCase(40, 2, cache, dtype="f32", fill=fill)
      for fill in ("special", "zero", "large") for cache in ("fp8", "bf16")),
    AppendCase(3, 1, skip=1),
)  # fmt: skip
GLM5 = (AppendCase(4096, 64), AppendCase(4096, 64, power_of_two=True), AppendCase(4096, 64, "bf16"), AppendCase(16, 64))
WORKLOADS = {"mla_cache_append": Workload(AppendCase, EDGES, GLM5, BITS, writes="cache")}
