"""Attention at work on a text: what byte comes next, going by the places that the indexer chose?

The latent of a place names the byte that follows it, its 64 rotated dims the last eight bytes in fixed random numbers.
A query looks for places with the same last bytes: attention weighs the bytes that followed them. Nothing is learnt.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import glm5_ops
from glm5_ops.cli import _demo_indexer
from glm5_ops.cli._output import Output

HEADS, LATENT, ROTATED, PAGE = 8, 512, 64, 64
SHARPNESS = 6.0  # the score of a place that agrees in all bytes
SCALE = 1.0


@dataclass(frozen=True)
class Operands:
    """Of the last places of a text, `tokens` of them: one sequence in a paged FP8 cache, its pages in some order."""

    q: Tensor
    cache: Tensor
    block_table: Tensor
    indices: Tensor
    sequences: Tensor
    slots: Tensor  # of all places of the text

    def decoded(self, tokens: slice) -> tuple[Tensor, Tensor]:
        q, indices, sequences = (t[tokens].contiguous() for t in (self.q, self.indices, self.sequences))
        return glm5_ops.sparse_mla_decode(q, self.cache, indices, SCALE, self.block_table, sequences)

    def prefilled(self) -> tuple[Tensor, Tensor]:
        kv = glm5_ops.mla_cache_gather(self.cache, self.slots)
        return glm5_ops.sparse_mla_attention(self.q, kv, self.indices, SCALE)[:2]


def operands(text: Tensor, indices: Tensor, device: str) -> Operands:
    """The keys of a text of bytes, appended to a cache, and the queries of its last places, one per row of indices."""
    generator = torch.Generator().manual_seed(11)
    back = _demo_indexer.LOOK_BACK
    numbers = torch.randn(back, 256, ROTATED, generator=generator) * ROTATED**-0.5
    places = torch.arange(len(text))
    before = torch.stack([text[(places - b).clamp(min=0)] for b in range(back)], 1).long()
    looks = numbers[torch.arange(back), before].sum(1)
    kv = torch.zeros(len(text), LATENT + ROTATED)
    kv[places[:-1], text[1:].long()] = 1
    kv[:, LATENT:] = looks

    pages = -(-len(text) // PAGE)
    table = torch.randperm(pages, generator=generator).int()
    slots = table[places // PAGE].long() * PAGE + places % PAGE
    cache = torch.zeros(pages, PAGE, 656, dtype=torch.uint8, device=device)
    still = torch.tensor([1.0, 0.0]).repeat(1, ROTATED // 2, 1)  # no rotation: only the last bytes count, not the place
    norm_weight = torch.full((LATENT,), LATENT**-0.5)
    appended = (kv, norm_weight, torch.zeros(len(text), dtype=torch.int32), still, slots)
    glm5_ops.mla_cache_append(*(t.to(device) for t in appended), cache, 1e-6)

    queries = torch.zeros(len(indices), HEADS, LATENT + ROTATED)
    sharpness = SHARPNESS * torch.linspace(0.5, 1.5, HEADS) / back
    queries[:, :, LATENT:] = looks[-len(indices) :, None] * sharpness[:, None]
    sequences = torch.zeros(len(indices), dtype=torch.int32)
    given = (queries.bfloat16(), cache, table[None], indices, sequences, slots)
    return Operands(*(t.to(device) for t in given))


def show(text: Tensor, device: str, output: Output) -> dict:
    """Choose keys, attend to them, show what comes next, and the same attention under other circumstances."""
    text = text[: _demo_indexer.KEYS]
    chosen = glm5_ops.indexer_topk(**_demo_indexer.operands(text, _demo_indexer.QUERIES, device))[0]
    inputs = operands(text, chosen.cpu(), device)
    tokens = len(chosen)
    out, lse = inputs.decoded(slice(None))
    following = text[-tokens + 1 :].long()
    share = out[:-1, :, :256].float().mean(1).cpu()
    hits = int((share.argmax(1) == following).sum())
    always = int(torch.bincount(following, minlength=256).max())
    right, commonest = hits / (tokens - 1), always / (tokens - 1)
    output.line(f"Attention over these keys ({HEADS} heads, {LATENT} + {ROTATED} dims, FP8 cache in pages of {PAGE})")
    output.line(
        f"guesses the next byte of {tokens - 1} places: {right:.0%} right; always the commonest byte: {commonest:.0%}."
    )
    same = _again(inputs, out, lse)
    output.table(
        ["its numbers again", "same bits"], [[name, "yes" if s else "NO"] for name, s in same.items()], words=2
    )
    output.line()
    return {"right": right, "commonest": commonest, "same": same}


def _again(inputs: Operands, out: Tensor, lse: Tensor) -> dict[str, bool]:
    """Whether the last token's numbers, or all, come again from other calls."""
    tokens = len(out)
    calls = {
        "decoded alone": (lambda: inputs.decoded(slice(tokens - 1, None)), slice(tokens - 1, None)),
        "decoded in a batch of 7": (lambda: inputs.decoded(slice(tokens - 7, None)), slice(tokens - 7, None)),
        "as rows of a prefill over the gathered cache": (inputs.prefilled, slice(None)),
    }
    same, threads = {}, torch.get_num_threads()
    on_cpu = out.device.type == "cpu"
    try:
        for count in (1, 2) if on_cpu else (threads,):
            torch.set_num_threads(count)
            for name, (call, rows) in calls.items():
                got = call()
                where = f"{name}, {count} thread{'s' * (count > 1)}" if on_cpu else name
                same[where] = torch.equal(got[0], out[rows]) and torch.equal(got[1], lse[rows])
    finally:
        torch.set_num_threads(threads)
    return same
