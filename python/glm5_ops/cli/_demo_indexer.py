"""The indexer at work on a text: which earlier places look like this one?

Every place of the text is described by its last eight bytes, each turned into fixed random numbers: its key is their
sum, and each of its 32 queries the sum over some of them. A query's product with a key is large where these agree, so
that ``indexer_topk`` chooses places where the text repeats itself. Nothing is learnt; it is a search for n-grams.
"""

import torch
from torch import Tensor

import glm5_ops
from glm5_ops.cli._output import Output

HEADS, DIM, LOOK_BACK = 32, 128, 8
KEYS, QUERIES, TOPK = 4096, 256, 64
SHOWN = 4


def operands(text: Tensor, queries: int, device: str) -> dict:
    """The arguments of ``indexer_topk`` for the last `queries` places of a text of bytes."""
    generator = torch.Generator().manual_seed(7)
    numbers = torch.randn(LOOK_BACK, 256, DIM, generator=generator) * DIM**-0.25
    places = torch.arange(len(text))
    before = torch.stack([text[(places - back).clamp(min=0)] for back in range(LOOK_BACK)], 1).long()
    parts = numbers[torch.arange(LOOK_BACK), before]  # [places, LOOK_BACK, DIM]
    looks_at = (torch.rand(HEADS, LOOK_BACK, generator=generator) < 0.5).float()
    looks_at[:, 0] = 1
    first = len(text) - queries
    ends = places[first:]  # a place itself is not among its keys
    return {
        "q": (looks_at @ parts[first:]).bfloat16().to(device),
        "k": parts.sum(1).bfloat16().to(device),
        "weights": torch.full((queries, HEADS), (HEADS * DIM) ** -0.5).to(device),
        "windows": torch.stack([torch.zeros_like(ends), ends], 1).int().to(device),
        "topk": TOPK,
    }


def show(text: Tensor, device: str, output: Output) -> dict:
    """Choose keys, show what was chosen, and the same choice under other circumstances."""
    text = text[:KEYS]
    inputs = operands(text, QUERIES, device)
    options = {"margins": True, "fingerprints": True}
    indices, _, prints = (t.cpu() for t in glm5_ops.indexer_topk(**inputs, **options))
    token = _in_a_word(text[-QUERIES:])
    output.line(
        f"The indexer chooses, for each of {QUERIES} places in Python's standard library, the {TOPK} most like it"
    )
    output.line(f"among those before ({len(text)} bytes, {HEADS} heads of {DIM}). The best of one place:")
    scores = glm5_ops.indexer_logits(**{n: v for n, v in inputs.items() if n != "topk"})[token].cpu()
    chosen = indices[token][indices[token] >= 0].long()
    best = chosen[scores[chosen].sort(descending=True, stable=True).indices][:SHOWN].tolist()
    place = len(text) - QUERIES + token
    rows = [[f"{place} (the query)", _around(text, place), ""]]
    rows += [[str(key), _around(text, key), f"{float(scores[key]):.2f}"] for key in best]
    output.table(["place", "the bytes up to it", "score"], rows, words=2)
    found = _again(inputs, options, token, prints[token])
    output.table([f"its {TOPK} keys again", "fingerprint", "same"], [[n, f"{p:016x}", s] for n, p, s in found], words=3)
    output.line()
    return {
        "place": place,
        "best": best,
        "fingerprint": f"{int(prints[token]) % 2**64:016x}",
        "same": {name: same == "yes" for name, _, same in found},
    }


def _in_a_word(text: Tensor) -> int:
    """The place with the most letters among its last bytes."""
    is_letter = (text | 32).ge(ord("a")) & (text | 32).le(ord("z"))
    return int(is_letter.int().unfold(0, LOOK_BACK, 1).sum(1).argmax()) + LOOK_BACK - 1


def _around(text: Tensor, place: int) -> str:
    return repr(bytes(text[max(0, place - 2 * LOOK_BACK) : place + 1].tolist()))[1:]


def _again(inputs: dict, options: dict, token: int, expected: Tensor) -> list[tuple[str, int, str]]:
    """The fingerprint of one token's set from other calls: (which, fingerprint, yes or NO)."""
    alone = {n: v[token : token + 1] if n in ("q", "weights", "windows") else v for n, v in inputs.items()}
    operands = {n: v for n, v in inputs.items() if n != "topk"}
    calls = {
        f"in the batch of {QUERIES}": lambda: glm5_ops.indexer_topk(**inputs, **options)[2][token],
        "alone": lambda: glm5_ops.indexer_topk(**alone, **options)[2][0],
        "from all scores, by topk_select": lambda: glm5_ops.topk_select(
            glm5_ops.indexer_logits(**operands), TOPK, inputs["windows"], **options
        )[2][token],
    }
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2) if inputs["q"].device.type == "cpu" else (threads,):
            torch.set_num_threads(count)
            for name, call in calls.items():
                fingerprint = int(call())
                where = f"{name}, {count} thread{'s' * (count > 1)}" if inputs["q"].device.type == "cpu" else name
                found.append((where, fingerprint % 2**64, "yes" if fingerprint == int(expected) else "NO"))
    finally:
        torch.set_num_threads(threads)
    return found
