"""Comparators: each takes what came and what was expected and returns a Verdict.

Tolerances stand here, with their reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """Whether a result passed, how far off it was, and in what unit."""

    passed: bool
    error: float  # in `unit`
    allowed: float
    unit: str
    detail: str = ""

    def __str__(self) -> str:
        state = "agrees" if self.passed else "DISAGREES"
        text = f"{state}: error {self.error:.3g} {self.unit}, allowed {self.allowed:.3g}"
        return f"{text}; {self.detail}" if self.detail else text


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes as integers, so that NaN equals NaN and -0 differs from 0.

    The sign and payload of a NaN are no promise of any op (processors differ in them), except in e4m3, which has but
    two.
    """
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and tensor.element_size() > 1:
        tensor = torch.where(tensor.isnan(), float("nan"), tensor).to(tensor.dtype)
    return tensor.view(kind)


def same_bits(got: Tensor, expected: Tensor) -> Verdict:
    """Equal to the bit, in shape and dtype too."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        shapes = f"{got.dtype}{list(got.shape)} instead of {expected.dtype}{list(expected.shape)}"
        return Verdict(False, float("inf"), 0, "elements", shapes)
    differing = bits(got) != bits(expected)
    count = int(differing.sum())
    detail = ""
    if count:
        where = tuple(int(i) for i in differing.nonzero()[0])
        got_value, expected_value = got.detach().cpu()[where], expected.detach().cpu()[where]
        detail = f"first at {list(where)}: {float(got_value)!r} instead of {float(expected_value)!r}"
        if repr(float(got_value)) == repr(float(expected_value)):
            detail += f" (bits {int(bits(got)[where]):#x} instead of {int(bits(expected)[where]):#x})"
    return Verdict(count == 0, count, 0, "elements", detail)


def within_torch(got: Tensor, exact: Tensor, torchs: Tensor, factor: float = 2.0) -> Verdict:
    """At most `factor` times as far from the f64 result as torch's own at the same precision, in the largest and in the
    mean error, plus one part in 2^22 of the largest value (FlashAttention-3's rule for long reductions).

    NaN and infinity must stand where the exact result has them, infinity with its sign."""
    if got.shape != exact.shape:
        return Verdict(False, float("inf"), factor, "x torch's", f"{list(got.shape)} instead of {list(exact.shape)}")
    got, exact, torchs = (t.detach().cpu().double() for t in (got, exact, torchs))
    finite = exact.isfinite()
    if values := _other_kind(got, exact):
        return Verdict(False, float("inf"), factor, "x torch's", values)
    if not bool(finite.any()):
        return Verdict(True, 0.0, factor, "x torch's")
    ours, theirs = ((t - exact)[finite].abs() for t in (got, torchs))
    slack = float(exact[finite].abs().max()) * 2.0**-22
    ratios = [
        float(o) / (float(t) + slack) if slack or t else (0.0 if not o else float("inf"))
        for o, t in ((ours.max(), theirs.max()), (ours.mean(), theirs.mean()))
    ]
    return Verdict(max(ratios) <= factor, max(ratios), factor, "x torch's")


def _other_kind(got: Tensor, exact: Tensor) -> str:
    """The first place where one is NaN or infinite and the other is not, or infinite with another sign; "" if none."""
    kind, wanted = (
        torch.nan_to_num(torch.where(t.isfinite(), 0.0, t), nan=0.5, posinf=1, neginf=-1) for t in (got, exact)
    )
    if torch.equal(kind, wanted):
        return ""
    where = tuple((kind != wanted).nonzero()[0].tolist())
    return f"{float(got[where])} instead of {float(exact[where])} at {list(where)}"


LARGEST_COSINE_DIFFERENCE = 7e-6


def cosine_difference(x: Tensor, y: Tensor) -> float:
    """1 - 2 x.y / (x.x + y.y); 0 for two zeros."""
    x, y = x.double().flatten(), y.double().flatten()
    squares = float(x @ x + y @ y)
    return 1 - 2 * float(x @ y) / squares if squares else 0.0


def _aligned(got: Tensor, exact: Tensor, allowed: Callable[[Tensor], Tensor]) -> Verdict:
    """Each element within what is `allowed` for its exact value, and the whole within the cosine difference."""
    if got.shape != exact.shape:
        return Verdict(False, float("inf"), 1, "bounds", f"{list(got.shape)} instead of {list(exact.shape)}")
    got, exact = (t.detach().cpu().double() for t in (got, exact))
    if values := _other_kind(got, exact):
        return Verdict(False, float("inf"), 1, "bounds", values)
    got, exact = (torch.where(exact.isfinite(), t, 0.0) for t in (got, exact))
    bounds = allowed(exact)
    element = float(((got - exact).abs() / bounds).max()) if got.numel() else 0.0
    whole = cosine_difference(got, exact) / LARGEST_COSINE_DIFFERENCE
    return Verdict(max(element, whole) <= 1, max(element, whole), 1, "bounds")


def attention(got: Tensor, exact: Tensor, torchs: Tensor) -> Verdict:
    """bf16: within 8e-4 + 3/128 of the value, for keys of size 0.1; f32 (lse, probabilities): 1e-6 + 2.01/65536."""
    base, part = (1e-6, 2.01 / 65536) if got.dtype == torch.float32 else (8e-4, 3 / 128)
    return _aligned(got, exact, lambda value: base + part * value.abs())


def attention_gradient(got: Tensor, exact: Tensor, torchs: Tensor) -> Verdict:
    """Within 2^-7 of the largest value: an element sums many terms that were rounded to bf16."""
    largest = exact.detach().cpu().double().abs().nan_to_num(0, 0).max() if exact.numel() else 0.0
    return _aligned(got, exact, lambda value: torch.full_like(value, 2**-7 * float(largest) + 1e-30))


@dataclass(frozen=True)
class Rule:
    """How an op's outputs are judged: `same_bits` as the reference, or by their distance from it in f64."""

    compare: Callable[..., Verdict]
    why: str

    def judge(self, reference: Callable, run: Callable, inputs: dict, got: tuple[Tensor, ...]) -> Verdict:
        """Judge `got` against `reference`; `run(function, inputs)` calls a function, for a tuple of its outputs."""
        expected = run(reference, inputs)
        if misfit := _misfit(got, expected):
            return Verdict(False, float("inf"), 0, "outputs", misfit)
        if self.compare is same_bits:
            verdicts = [same_bits(g, e) for g, e in zip(got, expected, strict=True)]
        else:
            exact = run(reference, in_f64(inputs))
            verdicts = [self.compare(g, x, e) for g, x, e in zip(got, exact, expected, strict=True)]
        worst = [v for v in verdicts if not v.passed] or [max(verdicts, key=lambda v: v.error)]
        return worst[0]


def _misfit(got: tuple, expected: tuple[Tensor, ...]) -> str:
    """What is wrong with the outputs apart from their values; empty if nothing is.

    A wider type would pass for a smaller error.
    """
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    for g, e in zip(got, expected, strict=True):
        if not isinstance(g, Tensor):
            return f"{type(g).__name__} instead of a tensor"
        if (g.dtype, g.shape, g.device) != (e.dtype, e.shape, e.device):
            return f"{g.dtype}{list(g.shape)} on {g.device} instead of {e.dtype}{list(e.shape)} on {e.device}"
    return ""


def in_f64(inputs: dict) -> dict:
    """The same arguments in f64, for an exact result: tensors wider than 8 bits, and dtypes asked for."""

    def widened(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point() and value.element_size() > 1:
            return value.double()
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return torch.float64
        return value

    return {name: widened(value) for name, value in inputs.items()}


BITS = Rule(same_bits, "an exact function of its inputs: the reference is met to the bit")
WITHIN_TORCH = Rule(within_torch, "a sum in f32: twice torch's own distance from the f64 result")


ATTENTION = Rule(
    attention,
    "probabilities are rounded to bf16 for the tensor units: FlashMLA's tolerances, a cosine difference of 7e-6",
)
ATTENTION_GRADIENT = Rule(
    attention_gradient, "scores' gradients are rounded to bf16 for the tensor units: a cosine difference of 7e-6"
)


@dataclass(frozen=True)
class SelectionRule(Rule):
    """Each row's choice against exact scores: `scores(inputs)` gives them in f64 with a bound of the error in f32."""

    scores: Callable[[dict], tuple[Tensor, Tensor]]

    def judge(self, reference: Callable, run: Callable, inputs: dict, got: tuple[Tensor, ...]) -> Verdict:
        if misfit := _misfit(got, run(reference, inputs)):
            return Verdict(False, float("inf"), 0, "outputs", misfit)
        on_cpu = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in inputs.items()}
        exact, bound = self.scores(on_cpu)
        return selected_by_score(tuple(g.cpu() for g in got), exact, bound, on_cpu)


def selected_by_score(got: tuple[Tensor, Tensor, Tensor], exact: Tensor, bound: Tensor, inputs: dict) -> Verdict:
    """Every chosen score is at least every score left out, but for the error of scores in f32.

    The error counts in units of its bound. Also asked: min(topk, window length) distinct keys of the window, ascending,
    then -1; margins as far from the exact ones as scores may be; fingerprints of the chosen set.

    Args:
        got: indices, margins, fingerprints.
        exact: scores in f64.
        bound: of a row's scores, the largest error.
        inputs: of the op: windows, topk and, with ``physical``, block_table and sequences.
    """
    # ranks: -inf below all numbers, NaN below -inf
    rank = torch.where(exact.isnan(), -2e300, exact.clamp(-1e300, 1e300))
    worst_error = 0.0
    for t, (begin, end) in enumerate(inputs["windows"].tolist()):
        chosen = _logical(got[0][t], inputs, t)
        wanted = list(range(begin, end))
        if len(chosen) != min(inputs["topk"], end - begin) or sorted(set(chosen) & set(wanted)) != chosen:
            return Verdict(False, float("inf"), 1, "bounds", f"row {t} is no ascending choice from its window")
        left = sorted(set(wanted) - set(chosen))
        margin = float("inf")
        if left and chosen:
            margin = float(rank[t, chosen].min() - rank[t, left].max())
            worst_error = max(worst_error, -margin / float(bound[t] + 1e-300))
        if got[1].numel() and abs(margin) < 1e299:
            worst_error = max(worst_error, abs(float(got[1][t]) - margin) / float(bound[t] + 1e-300))
        if got[2].numel() and int(got[2][t]) != _fingerprint(chosen):
            return Verdict(False, float("inf"), 1, "bounds", f"fingerprint of row {t}")
    return Verdict(worst_error <= 1, worst_error, 1, "bounds")


def _logical(row: Tensor, inputs: dict, t: int) -> list[int]:
    """The keys of a row of indices; a -1 between them, or what is no slot of the sequence, stays as -1."""
    indices = row.tolist()
    while indices and indices[-1] == -1:
        indices.pop()
    if not inputs.get("physical", False):
        return indices
    pages = {page: i for i, page in reversed(list(enumerate(inputs["block_table"][inputs["sequences"][t]].tolist())))}
    return [pages[slot // 64] * 64 + slot % 64 if slot // 64 in pages else -1 for slot in indices]


def _fingerprint(chosen: list[int]) -> int:
    """The sum of splitmix64's outputs, as i64."""
    total = 0
    for index in chosen:
        z = (index + 1) * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        total += z ^ (z >> 31)
    return (total + 2**63) % 2**64 - 2**63
