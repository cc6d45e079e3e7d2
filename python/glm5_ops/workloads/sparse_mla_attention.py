"""Cases of sparse_mla_attention and of its gradient."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from glm5_ops.workloads._compare import ATTENTION, ATTENTION_GRADIENT
from glm5_ops.workloads._indexer import PAGE, chosen_indices, values
from glm5_ops.workloads._workload import Case, Workload


@dataclass(frozen=True)
class SparseMlaAttentionCase(Case):
    """`fill`: see ``chosen_indices``; `more`: letters of what else is given or asked for, ``l`` a topk_length that cuts
    rows, ``s`` sinks, ``p`` the probabilities."""

    tokens: int
    keys: int
    topk: int
    heads: int = 64
    qk_dim: int = 576
    v_dim: int = 512
    fill: str = "chosen"
    more: str = ""

    def make(self, generator: torch.Generator) -> dict:
        inputs = {
            "q": values((self.tokens, self.heads, self.qk_dim), "bf16", generator),
            "kv": 0.1 * values((self.keys, self.qk_dim), "bf16", generator),
            "indices": chosen_indices(self.tokens, self.keys, self.topk, self.fill, generator),
            "scale": 15 * self.qk_dim**-0.5,
            "v_dim": self.v_dim,
        }
        if "l" in self.more:
            inputs["topk_length"] = torch.randint(-1, self.topk + 3, (self.tokens,), generator=generator).int()
        if "s" in self.more:
            inputs["sink"] = 2 * torch.randn(self.heads, generator=generator) + 2
        return inputs | ({"probabilities": True} if "p" in self.more else {})

    def flops(self) -> int:
        return 2 * self.tokens * self.topk * self.heads * (self.qk_dim + self.v_dim)

    def bytes_moved(self) -> int:
        queries = 2 * self.tokens * self.heads * (self.qk_dim + self.v_dim + 2)
        chosen = self.tokens * self.topk * (8 if "p" in self.more else 4)
        return queries + 2 * min(self.keys, self.tokens * self.topk) * self.qk_dim + chosen


@dataclass(frozen=True)
class SparseMlaAttentionBwdCase(SparseMlaAttentionCase):
    """The gradient. It is a formula of any `out`, so this one is random; lse is that of the scores."""

    def make(self, generator: torch.Generator) -> dict:
        inputs = super().make(generator)
        del inputs["v_dim"]
        shape = (self.tokens, self.heads, self.v_dim)
        d_out, out = (torch.randn(shape, generator=generator).bfloat16() for _ in range(2))
        d_lse = torch.randn(shape[:2], generator=generator)
        lse = torch.stack([_lse(inputs, t) for t in range(self.tokens)]) if self.tokens else torch.empty(shape[:2])
        given = {n: inputs.pop(n) for n in ("q", "kv", "indices")}
        return {"d_out": d_out, "d_lse": d_lse, **given, "out": 0.2 * out, "lse": lse, **inputs}

    def flops(self) -> int:
        return 2 * self.tokens * self.topk * self.heads * (3 * self.qk_dim + 2 * self.v_dim)

    def bytes_moved(self) -> int:
        more = self.tokens * self.heads * (self.qk_dim + self.v_dim + 2) + self.keys * self.qk_dim
        return super().bytes_moved() + 2 * more


def _lse(inputs: dict, t: int) -> Tensor:
    """Of one token, -inf where it names no key."""
    row, kv = inputs["indices"][t].long(), inputs["kv"]
    if "topk_length" in inputs:
        row = row[: max(0, int(inputs["topk_length"][t]))]
    keys = kv[row[(row >= 0) & (row < len(kv))]].float()
    return (inputs["scale"] * (inputs["q"][t].float() @ keys.T)).logsumexp(1)


@dataclass(frozen=True)
class SparseMlaDecodeCase(Case):
    """`sequences` of up to `length` positions in pages in any order, `queries` tokens of each. `cache`: fp8 or bf16;
    `fill` and `more` as above, and in `more` ``t``: indices by way of a block table."""

    sequences: int
    length: int
    topk: int
    heads: int = 64
    queries: int = 1
    cache: str = "fp8"
    fill: str = "chosen"
    more: str = "t"
    schedule: str = "exact"

    @property
    def tokens(self) -> int:
        return self.sequences * self.queries

    def make(self, generator: torch.Generator) -> dict:
        each = (self.length + PAGE - 1) // PAGE
        pages = self.sequences * each + 2  # two that nobody has
        order = torch.randperm(pages, generator=generator)[: self.sequences * each].int()
        keys = self.length if "t" in self.more else pages * PAGE
        inputs = {
            "q": values((self.tokens, self.heads, 576), "bf16", generator),
            "cache": latent_cache(self.cache, pages, generator),
            "indices": chosen_indices(self.tokens, keys, self.topk, self.fill, generator),
            "scale": 15 * 576**-0.5,
        }
        if "t" in self.more:
            inputs["block_table"] = order.view(self.sequences, each)
            inputs["sequences"] = torch.arange(self.sequences).repeat_interleave(self.queries).int()
        if "l" in self.more:
            inputs["topk_length"] = torch.randint(-1, self.topk + 3, (self.tokens,), generator=generator).int()
        if "s" in self.more:
            inputs["sink"] = 2 * torch.randn(self.heads, generator=generator) + 2
        return inputs if self.schedule == "exact" else inputs | {"schedule": self.schedule}

    def flops(self) -> int:
        return 2 * self.tokens * self.topk * self.heads * (576 + 512)

    def bytes_moved(self) -> int:
        row = 656 if self.cache == "fp8" else 1152
        return self.tokens * (2 * self.heads * (576 + 512 + 2) + self.topk * (4 + row))


def latent_cache(kind: str, pages: int, generator: torch.Generator) -> Tensor:
    """A cache whose values are about 0.1, as keys of the other cases are."""
    rope = (0.1 * torch.randn(pages, PAGE, 64, generator=generator)).bfloat16()
    latent = torch.randn(pages, PAGE, 512, generator=generator)
    if kind == "bf16":
        return torch.cat(((0.1 * latent).bfloat16(), rope), dim=2)
    codes = (60 * latent).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = 0.1 / 60 * torch.exp2(torch.rand(pages, PAGE, 4, generator=generator))
    return torch.cat((codes, scales.view(torch.uint8), rope.view(torch.uint8)), dim=2)


# tokens, keys, topk, heads, qk_dim, v_dim
_SHAPES = (
    (0, 40, 8, 8),
    (3, 0, 4, 8),
    (3, 40, 0, 8),
    (1, 1, 1, 64),
    (2, 90, 63, 8),
    (2, 90, 64, 8, 512),
    (3, 200, 65, 16),
    (1, 120, 100, 64),
    (1, 130, 129, 24, 512),
    (1, 40, 40, 130),
    (4, 50, 33, 3),
)
_ANY_SHAPES = (
    (0, 40, 8, 8, 64, 32),
    (2, 300, 257, 64, 192, 128),
    (5, 50, 30, 1, 40, 24),
    (4, 50, 33, 3, 100, 100),
    (3, 60, 40, 17, 7, 5),
    (1, 150, 140, 40, 160, 150),
    (1, 40, 40, 130, 32, 32),
)


def _edges(case: type[SparseMlaAttentionCase], more: str) -> tuple:
    odd = tuple(case(3, 40, 70, 8, fill=fill, more=more) for fill in ("any", "absent", "same"))
    return (*(case(*shape) for shape in _SHAPES), *odd, case(2, 80, 140, 20, 512, fill="any", more=more))


def _any_sizes(case: type[SparseMlaAttentionCase], more: str) -> tuple:
    odd = tuple(case(4, 40, 70, 8, 96, 64, fill=fill, more=more) for fill in ("any", "absent", "same"))
    return (*(case(*shape) for shape in _ANY_SHAPES), *odd, case(6, 80, 140, 20, 160, 130, fill="any", more=more))


EDGES, EDGES_BWD = _edges(SparseMlaAttentionCase, "lsp"), _edges(SparseMlaAttentionBwdCase, "ls")
# Sizes that the CPU kernels take and the CUDA kernels do not.
ANY_SIZES, ANY_SIZES_BWD = _any_sizes(SparseMlaAttentionCase, "lsp"), _any_sizes(SparseMlaAttentionBwdCase, "ls")
GLM5 = (
    SparseMlaAttentionCase(64, 16384, 2048, fill="full"),
    SparseMlaAttentionCase(64, 16384, 2048, heads=8, fill="full"),
    SparseMlaAttentionCase(64, 16384, 2048, qk_dim=512, more="sp"),
)


def _decode_edges(schedule: str) -> tuple:
    def case(*numbers: int, **more) -> SparseMlaDecodeCase:
        return SparseMlaDecodeCase(*numbers, **more, schedule=schedule)

    ragged = tuple(
        case(2, 130, 65, 8, 1, cache=cache, fill=fill, more=more)
        for cache in ("fp8", "bf16") for fill in ("chosen", "any") for more in ("t", "ls")
    )  # fmt: skip
    return (
        case(0, 70, 8, 8), case(1, 1, 1, 64), case(2, 70, 0, 8), *ragged, case(1, 130, 70, 20, 3, more="tls"),
        case(1, 60, 60, 64, cache="bf16", fill="full"), case(2, 60, 70, 3, fill="absent"),
        case(1, 60, 70, 3, fill="same"),
    )  # fmt: skip


# Of the fast schedule also: several tiles, some of them empty; more tokens than have their tiles dealt out.
EDGES_DECODE = (
    *_decode_edges("exact"),
    *_decode_edges("fast"),
    SparseMlaDecodeCase(1, 300, 257, 17, 2, fill="any", more="tls", schedule="fast"),
    SparseMlaDecodeCase(18, 70, 65, 3, fill="any", more="tl", schedule="fast"),
)
_GLM5_DECODE = (
    SparseMlaDecodeCase(1, 32768, 2048, fill="full"),
    SparseMlaDecodeCase(4, 32768, 2048, fill="full"),
    SparseMlaDecodeCase(4, 32768, 2048, cache="bf16", fill="full"),
    SparseMlaDecodeCase(4, 32768, 2048, 8, fill="full"),
)
GLM5_DECODE = tuple(replace(case, schedule=schedule) for case in _GLM5_DECODE for schedule in ("exact", "fast"))
GLM5_BWD = (SparseMlaAttentionBwdCase(64, 16384, 2048, fill="full"),)
_ROWS = ("q", "indices", "topk_length")
WORKLOADS = {
    "sparse_mla_attention": Workload(SparseMlaAttentionCase, EDGES, GLM5, ATTENTION, rows=_ROWS, row_dim=0),
    "sparse_mla_decode": Workload(
        SparseMlaDecodeCase, EDGES_DECODE, GLM5_DECODE, ATTENTION, rows=(*_ROWS, "sequences"), row_dim=0
    ),
    "sparse_mla_attention_bwd": Workload(SparseMlaAttentionBwdCase, EDGES_BWD, GLM5_BWD, ATTENTION_GRADIENT),
}
