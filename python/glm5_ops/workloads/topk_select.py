"""Cases of topk_select: integers, fingerprints and margins are exact functions of the scores, so bits are compared."""

from dataclasses import dataclass

import torch

from glm5_ops.workloads._compare import BITS
from glm5_ops.workloads._workload import Case, Workload

PAGE = 64


@dataclass(frozen=True)
class TopkSelectCase(Case):
    """`fill` chooses the scores (see `numbers`), `windows` the ranges: all, ragged, causal."""

    rows: int
    keys: int
    topk: int
    fill: str = "normal"
    windows: str = "all"
    paged: bool = False
    optional: bool = True  # margins and fingerprints too
    offset: int = 0  # the first score's distance from an aligned address, and the rows' padding

    def make(self, generator: torch.Generator) -> dict:
        wide = numbers(self.fill, self.rows, self.keys + 2 * self.offset, generator)
        inputs = {"scores": wide[:, self.offset : self.offset + self.keys], "topk": self.topk}
        if self.windows != "all":
            inputs["windows"] = self._windows(generator)
        if self.paged:
            pages, sequences = -(-self.keys // PAGE), max(1, self.rows // 2)
            table = torch.randperm(sequences * (pages + 1), generator=generator).view(sequences, pages + 1)
            inputs["block_table"] = table[:, :pages].int()
            inputs["sequences"] = torch.randint(0, sequences, (self.rows,), generator=generator).int()
        return {**inputs, "margins": self.optional, "fingerprints": self.optional}

    def _windows(self, generator: torch.Generator) -> torch.Tensor:
        if self.windows == "causal":
            end = torch.arange(self.rows) + self.keys - self.rows + 1
            return torch.stack([torch.zeros_like(end), end], dim=1).int()
        bounds = torch.randint(0, self.keys + 1, (self.rows, 2), generator=generator).sort(dim=1).values
        for row, bound in enumerate(
            ((0, self.keys), (0, 0), (self.keys, self.keys), (self.keys // 2, self.keys // 2 + 1))
        ):
            bounds[row : row + 1] = torch.tensor(bound).clamp(max=self.keys)
        return bounds.int()

    def bytes_moved(self) -> int:
        return self.rows * (self.keys + self.topk) * 4


def numbers(fill: str, rows: int, keys: int, generator: torch.Generator) -> torch.Tensor:
    """Scores that are hard in the way `fill` says."""
    x = torch.randn(rows, keys, generator=generator)
    if fill == "equal":
        return torch.full_like(x, 1.25)
    if fill == "zeros":
        return torch.where(x > 0, 0.0, -0.0)
    if fill == "plateau":  # a fiftieth is above 0: the cut lies among zeros
        return torch.where(x > 2.05, x, torch.where(x > 0, 0.0, -0.0))
    if fill == "integers":  # a few dozen values, many times each
        return (x * 8).round()
    if fill == "close":  # one exponent, neighbours in their last bits
        return 1 + torch.randint(0, 4096, (rows, keys), generator=generator) * 2.0**-23
    if fill == "tiny":  # denormal
        return x * 2.0**-140
    if fill == "ascending":
        return x.sort(dim=1).values
    if fill == "descending":
        return x.sort(dim=1, descending=True).values
    if fill == "nan":
        return torch.full_like(x, float("nan"))
    if fill == "infinite":  # few numbers: the cut lies among -inf or NaN
        odd = torch.tensor([float("-inf"), float("nan"), float("inf")])
        return torch.where(x.abs() < 1.9, odd[torch.randint(0, 3, (rows, keys), generator=generator)], x)
    if fill == "misleading":  # high where a sample of 64 runs of 16 looks
        return torch.where(torch.arange(keys) % max(1, keys // 64) < 16, x + 10, x)
    if fill == "gap":  # a tenth far above the others, with nothing between
        return torch.where(torch.arange(keys) % 10 == 0, x.abs() + 100, x)
    if fill == "hidden":  # low there, and elsewhere neighbours in their last bits: the buffer is cut often and closely
        close = 1 + torch.randint(0, 4096, (rows, keys), generator=generator) * 2.0**-23
        return torch.where(torch.arange(keys) % max(1, keys // 64) < 16, x - 10, close)
    if fill == "special":
        odd = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 0.0, 2.0**-140, -(2.0**-140), 3.4e38])
        pick = torch.randint(0, 16, (rows, keys), generator=generator)
        return torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
    return x


FILLS = (
    "normal", "equal", "zeros", "plateau", "integers", "close", "tiny", "ascending", "descending", "nan", "infinite",
    "misleading", "hidden", "gap", "special",
)  # fmt: skip
EDGES = (
    *(TopkSelectCase(r, k, t) for r, k, t in ((0, 5, 3), (3, 0, 4), (1, 1, 1), (3, 7, 20), (5, 64, 64), (2, 65, 64))),
    *(TopkSelectCase(4, 2300, topk) for topk in (1, 3, 512, 2047, 2048, 4096)),
    *(TopkSelectCase(3, 3001, 512, fill, offset=offset) for fill in FILLS for offset in (0, 3)),
    *(TopkSelectCase(3, 9000, 100, fill, offset=1) for fill in FILLS),
    *(TopkSelectCase(9, 700, topk, fill, "ragged", paged)
      for topk in (3, 512) for fill in ("normal", "integers", "special") for paged in (False, True)),
    TopkSelectCase(6, 1000, 128, windows="causal", optional=False),
    TopkSelectCase(1, 40000, 2048, "integers"),
)  # fmt: skip
GLM5 = (
    TopkSelectCase(64, 65536, 2048, optional=False),
    TopkSelectCase(64, 65536, 2048),
    TopkSelectCase(64, 65536, 2048, "plateau", optional=False),
    TopkSelectCase(64, 65536, 2048, "equal", optional=False),
    TopkSelectCase(64, 65536, 2048, "ascending", optional=False),
    TopkSelectCase(1, 131072, 2048, optional=False),
    TopkSelectCase(1024, 8192, 2048, windows="causal", optional=False),
    TopkSelectCase(4096, 4096, 2048, windows="causal", optional=False),
)
WORKLOADS = {
    "topk_select": Workload(TopkSelectCase, EDGES, GLM5, BITS, rows=("scores", "windows", "sequences"), row_dim=0)
}
