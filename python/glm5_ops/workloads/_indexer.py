"""What the workloads of the indexer's ops share: queries, head weights, keys dense and paged, and windows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from glm5_ops.workloads._workload import Case

PAGE = 64
BYTES = {"e4m3": 1, "bf16": 2}
DTYPES = {"e4m3": torch.float8_e4m3fn, "bf16": torch.bfloat16}


def chosen_indices(tokens: int, keys: int, topk: int, fill: str, generator: torch.Generator) -> Tensor:
    """i32[tokens, topk] by `fill`: ``chosen`` (ascending, different, -1 at the end of most rows), ``full`` (so, but
    no -1 while keys last), ``any`` (repeated, in any order, absent ones anywhere and of any value),
    ``absent`` (none is a key), ``same`` (one key everywhere)."""
    shape = (tokens, topk)
    if fill in ("chosen", "full"):
        order = torch.rand(tokens, keys, generator=generator).argsort(1)[:, :topk]
        indices = torch.full(shape, keys).long()
        indices[:, : order.shape[1]] = order
        visible = torch.randint(0, keys + 1, (tokens, 1), generator=generator)
        indices = torch.where((indices < visible) | (fill == "full"), indices, keys).sort(1).values
        return torch.where(indices < keys, indices, -1).int()
    if fill == "same":
        return torch.full(shape, keys // 2).int()
    odd = torch.tensor([-1, -(2**31), 2**31 - 1, keys])
    absent = odd[torch.randint(0, len(odd), shape, generator=generator)]
    if fill == "absent":
        return absent.int()
    present = torch.randint(0, max(1, keys), shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.7, present, absent).int()


def values(shape: tuple[int, ...], dtype: str, generator: torch.Generator) -> Tensor:
    """Normal numbers; with e4m3 spread over most of its range, as quantisation leaves them."""
    spread = 100.0 if dtype == "e4m3" else 1.0
    return (torch.randn(shape, generator=generator) * spread).clamp(-448, 448).to(DTYPES[dtype])


def head_weights(tokens: int, heads: int, dim: int, dtype: str, generator: torch.Generator) -> Tensor:
    """Both signs; the scales of the softmax, of the heads and of q are in them."""
    scale = max(heads, 1) ** -0.5 * max(dim, 1) ** -0.5 * (0.01 if dtype == "e4m3" else 1.0)
    return torch.randn(tokens, heads, generator=generator) * scale


def key_scales(keys: int, generator: torch.Generator) -> Tensor:
    return torch.exp2(torch.randn(keys, generator=generator)) * 0.01


def windows_of(kind: str, tokens: int, keys: int, seed: int) -> Tensor:
    """[start, end) for every token: ``causal`` with the last token at the last key, ``packed`` in three documents,
    ``random`` (some empty, some full), ``full`` or ``empty``."""
    t = torch.arange(tokens)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        windows = torch.randint(0, keys + 1, (tokens, 2), generator=generator).sort(1).values.int()
        windows[::7, 0] = windows[::7, 1]
        windows[3::7] = torch.tensor([0, keys], dtype=torch.int32)
        return windows
    end = {"full": t * 0 + keys, "empty": t * 0 + keys // 2}.get(kind, (keys - tokens + t + 1).clamp(0, keys))
    start = {"empty": end, "packed": end // max(1, (keys + 2) // 3) * max(1, (keys + 2) // 3)}.get(kind, t * 0)
    return torch.stack([torch.minimum(start, end), end], 1).int()


@dataclass(frozen=True)
class DenseCase(Case):
    """`fill`: ``normal``; ``nan`` or ``inf`` at a few keys (``inf`` with products that are never -inf)."""

    tokens: int
    keys: int
    heads: int = 32
    dim: int = 128
    dtype: str = "e4m3"
    windows: str = "causal"
    fill: str = "normal"
    strided: bool = False

    def make(self, generator: torch.Generator) -> dict:
        q = values((self.tokens, self.heads, self.dim + 16 * self.strided), self.dtype, generator)[..., : self.dim]
        k = values((self.keys, self.dim + 32 * self.strided), self.dtype, generator)[:, : self.dim]
        weights = head_weights(self.tokens, self.heads, self.dim, self.dtype, generator)
        if self.fill == "nan" and k.numel():
            k[self.keys // 3, self.dim // 2] = k[-1, 0] = float("nan")
        if self.fill == "inf" and k.numel():
            q, weights = q.abs(), weights.abs() * torch.where(torch.arange(self.tokens) % 2 == 0, 1, -1)[:, None]
            k[self.keys // 3, self.dim // 2] = k[-1, 0] = float("inf")
        inputs = {"q": q, "k": k, "weights": weights}
        inputs["windows"] = windows_of(self.windows, self.tokens, self.keys, self.seed)
        if self.dtype == "e4m3":
            inputs["k_scales"] = key_scales(self.keys, generator)
        return inputs

    def pairs(self) -> int:
        """Keys inside windows, over all tokens."""
        windows = windows_of(self.windows, self.tokens, self.keys, self.seed).long()
        return int((windows[:, 1] - windows[:, 0]).sum())

    def flops(self) -> int:
        return 2 * self.heads * self.dim * self.pairs()

    def input_bytes(self) -> int:
        values = self.tokens * self.heads * self.dim + self.keys * self.dim
        scales = self.keys * 4 * (self.dtype == "e4m3")
        return values * BYTES[self.dtype] + scales + self.tokens * (4 * self.heads + 8)


@dataclass(frozen=True)
class PagedCase(Case):
    """`queries` tokens for each sequence, at its end; lengths are ragged, up to `length`.

    Pages lie in any order. What no window reaches (the rest of a page, other pages) holds NaN, and the rest of the
    table numbers that are no pages."""

    sequences: int
    length: int
    queries: int = 1
    heads: int = 32
    dim: int = 128
    dtype: str = "e4m3"
    ragged: bool = True

    def lengths(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        ragged = torch.randint(0, self.length + 1, (self.sequences,), generator=generator)
        ragged[:1] = self.length
        return ragged.tolist() if self.ragged else [self.length] * self.sequences

    def make(self, generator: torch.Generator) -> dict:
        lengths, tokens = self.lengths(), self.sequences * self.queries
        max_pages = max((length + PAGE - 1) // PAGE for length in (*lengths, 1)) + 1
        used = [(length + PAGE - 1) // PAGE for length in lengths]
        pages = torch.randperm(sum(used) + 2, generator=generator)[: sum(used)].int()
        block_table = torch.randint(2**30, 2**31 - 1, (self.sequences, max_pages), generator=generator).int()
        block_table[:, 1::2] *= -1
        rows = torch.full(((sum(used) + 2), PAGE, self.dim), float("nan")).to(DTYPES[self.dtype])
        scales = torch.full((sum(used) + 2, PAGE), float("nan"))
        first, windows = 0, []
        for sequence, length in enumerate(lengths):
            own = pages[first : first + used[sequence]]
            block_table[sequence, : used[sequence]] = own
            for i, page in enumerate(own.tolist()):
                here = min(PAGE, length - i * PAGE)
                rows[page, :here] = values((here, self.dim), self.dtype, generator)
                scales[page, :here] = key_scales(here, generator)
            first += used[sequence]
            windows += [[0, max(0, length - self.queries + j + 1)] for j in range(self.queries)]
        return {
            "q": values((tokens, self.heads, self.dim), self.dtype, generator),
            "weights": head_weights(tokens, self.heads, self.dim, self.dtype, generator),
            "cache": rows if self.dtype == "bf16" else packed_pages(rows, scales),
            "block_table": block_table,
            "sequences": torch.arange(self.sequences).repeat_interleave(self.queries).int(),
            "windows": torch.tensor(windows, dtype=torch.int32).view(tokens, 2),
        }

    def pairs(self) -> int:
        return sum(max(0, n - self.queries + j + 1) for n in self.lengths() for j in range(self.queries))

    def flops(self) -> int:
        return 2 * self.heads * self.dim * self.pairs()

    def input_bytes(self) -> int:
        per_key = self.dim * BYTES[self.dtype] + 4 * (self.dtype == "e4m3")
        tokens = self.sequences * self.queries
        return sum(self.lengths()) * per_key + tokens * self.heads * (self.dim * BYTES[self.dtype] + 4)


def packed_pages(rows: Tensor, scales: Tensor) -> Tensor:
    """u8[pages, 64*(dim+4)]: the values of a page, then its scales."""
    return torch.cat([rows.view(torch.uint8).flatten(1), scales.contiguous().view(torch.uint8)], 1)


def exact_scores(inputs: dict) -> tuple[Tensor, Tensor]:
    """Scores in f64, and for each row a bound of the error that they have in f32.

    A score adds up q . k of all heads. No sum of f32 is longer than 16 products of a step, dim / 32 steps, heads / 4
    heads and a few more; each addition errs by up to 2^-24 of a partial sum, which is as large as the product, or as
    the root of its terms' squares where these cancel. A comparison takes two scores.
    """
    heads, dim = inputs["q"].shape[1:]
    parts = [_exact_scores(inputs, slice(t, t + 32)) for t in range(0, inputs["q"].shape[0] or 1, 32)]
    scores, largest = (torch.cat(part) for part in zip(*parts, strict=True))
    return scores, 2 * (24 + dim / 32 + heads / 4) * 2.0**-24 * largest


def _exact_scores(inputs: dict, rows: slice) -> tuple[Tensor, Tensor]:
    """Scores of some tokens, and the largest sum of magnitudes of each."""
    q, weights = (inputs[n][rows].double() for n in ("q", "weights"))
    windows, tokens = inputs["windows"][rows].long(), len(q)
    if "cache" in inputs:
        keys, k, k_scales = inputs["block_table"].shape[1] * PAGE, *_gathered(inputs, rows)
    else:
        keys, k = inputs["k"].shape[0], inputs["k"].double().expand(tokens, -1, -1)
        k_scales = inputs["k_scales"].double() if inputs.get("k_scales") is not None else torch.ones(keys).double()
    products = torch.einsum("thd,tsd->ths", q, k)
    scores = torch.einsum("ths,th->ts", products.relu(), weights) * k_scales
    partial = products.abs() + torch.einsum("thd,tsd->ths", q.square(), k.square()).sqrt()
    magnitudes = torch.einsum("ths,th->ts", partial, weights.abs()) * k_scales
    s = torch.arange(keys)
    inside = (s >= windows[:, :1]) & (s < windows[:, 1:])
    magnitudes = magnitudes.where(inside & magnitudes.isfinite(), 0.0)
    largest = magnitudes.amax(1) if keys else magnitudes.new_zeros(tokens)
    return scores.where(inside, float("-inf")), largest


def _gathered(inputs: dict, rows: slice) -> tuple[Tensor, Tensor]:
    """The keys of the sequences of some tokens, [tokens, positions, dim], and their scales."""
    cache, dim = inputs["cache"], inputs["q"].shape[2]
    pages = inputs["block_table"][inputs["sequences"][rows].long()].long().clamp(0, cache.shape[0] - 1)
    if cache.dtype == torch.uint8:
        k = cache[:, : PAGE * dim].reshape(-1, PAGE, dim).view(torch.float8_e4m3fn).double()
        scales = cache[:, PAGE * dim :].contiguous().view(torch.float32).double()
    else:
        k, scales = cache.double(), torch.ones(cache.shape[0], PAGE).double()
    return k[pages].flatten(1, 2), scales[pages].flatten(1)
