"""Cases of mla_cache_gather."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload
from glm5_ops.workloads.mla_cache_append import random_cache


@dataclass(frozen=True)
class GatherCase(Case):
    """Random slots, some of them twice; every `skip`-th is -1."""

    rows: int
    pages: int
    cache: str = "fp8"
    skip: int = 0

    def make(self, generator: torch.Generator) -> dict:
        slots = torch.randint(0, self.pages * 64, (self.rows,), generator=generator)
        if self.skip:
            slots[:: self.skip] = -1
        return {"cache": random_cache(self.cache, self.pages, generator), "cache_slots": slots}

    def bytes_moved(self) -> int:
        return self.rows * ((1152 if self.cache == "bf16" else 656) + 1152 + 8)


EDGES = (
    GatherCase(0, 1),
    GatherCase(1, 1),
    GatherCase(1, 1, "bf16"),
    GatherCase(133, 2, skip=7),
    GatherCase(133, 2, "bf16", skip=7),
    GatherCase(3, 1, skip=1),
)
GLM5 = (GatherCase(4096, 512), GatherCase(4096, 512, "bf16"))
WORKLOADS = {"mla_cache_gather": Workload(GatherCase, EDGES, GLM5, BITS)}
