"""Cases of moe_route and of its gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from glm5_ops.workloads._compare import WITHIN_TORCH, Rule, Verdict, in_f64, same_bits
from glm5_ops.workloads._workload import Case, Workload


@dataclass(frozen=True)
class MoeRouteCase(Case):
    """`fill`: normal; ties (few different logits); special (infinities and NaN among them); far (scores of 0 and 1).
    `replay`: none, u8, i32, or some (i32 with rows of -1)."""

    tokens: int
    experts: int = 256
    topk: int = 8
    n_group: int = 1
    topk_group: int = 1
    scoring: str = "sigmoid"
    fill: str = "normal"
    replay: str = "none"
    normalize: bool = True
    biased: bool = True

    def make(self, generator: torch.Generator) -> dict:
        inputs = {
            "logits": logits(self.tokens, self.experts, self.fill, generator),
            "bias": torch.randn(self.experts, generator=generator) * 0.1 if self.biased else None,
            "topk": self.topk,
            "n_group": self.n_group,
            "topk_group": self.topk_group,
            "scoring": self.scoring,
            "normalize": self.normalize,
            "scale": 2.5,
        }
        if self.replay != "none":
            given = permutations(self.tokens, self.experts, self.topk, generator)
            if self.replay == "some":
                given[::3] = -1
            inputs["replay_experts"] = given.to(torch.uint8) if self.replay == "u8" else given
        return inputs

    def bytes_moved(self) -> int:
        return 4 * self.tokens * (self.experts + 2 * self.topk) + 8 * self.experts


@dataclass(frozen=True)
class MoeRouteBwdCase(MoeRouteCase):
    """The gradient for random choices; a slot in six holds -1 where `fill` is "absent"."""

    def make(self, generator: torch.Generator) -> dict:
        chosen = permutations(self.tokens, self.experts, self.topk, generator)
        if self.fill == "absent":
            chosen[torch.rand(chosen.shape, generator=generator) < 1 / 6] = -1
        return {
            "d_weights": torch.randn(self.tokens, self.topk, generator=generator),
            "logits": logits(self.tokens, self.experts, self.fill, generator),
            "chosen": chosen,
            "scoring": self.scoring,
            "normalize": self.normalize,
            "scale": 2.5,
        }

    def bytes_moved(self) -> int:
        return 8 * self.tokens * (self.experts + self.topk)


def logits(tokens: int, experts: int, fill: str, generator: torch.Generator) -> Tensor:
    x = torch.randn(tokens, experts, generator=generator)
    if fill == "ties":
        return x.round()
    if fill == "far":
        return x * 80
    if fill == "special":
        odd = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0])
        pick = torch.randint(0, 30, x.shape, generator=generator)
        x = torch.where(pick < len(odd), odd[pick.clamp(max=len(odd) - 1)], x)
        x[::4] = float("nan")
    return x


def permutations(tokens: int, experts: int, topk: int, generator: torch.Generator) -> Tensor:
    """Rows of distinct ids."""
    return torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :topk].int().contiguous()


class RoutingRule(Rule):
    """The reference's experts, or others whose scores in f64 differ by less than the error in f32; then the weights of
    the experts that came, within 2^-19 of those in f64."""

    def judge(self, reference: Callable, run: Callable, inputs: dict, got: tuple[Tensor, ...]) -> Verdict:
        expected = run(reference, inputs)
        for g, e in zip(got, expected, strict=True):
            if (g.dtype, g.shape, g.device) != (e.dtype, e.shape, e.device):
                return Verdict(False, float("inf"), 1, "bounds", f"{g.dtype}{list(g.shape)} on {g.device}")
        inputs = {n: v.cpu() if isinstance(v, Tensor) else v for n, v in inputs.items()}
        experts, weights, counts = (g.cpu() for g in got)
        for token in (experts != expected[0].cpu()).any(dim=1).nonzero().flatten().tolist():
            if reason := _wrong_choice(inputs, token, experts[token].tolist()):
                return Verdict(False, float("inf"), 1, "bounds", f"token {token}: {reason}")
        counted = torch.bincount(experts.flatten().long(), minlength=len(counts)).int()
        if not (verdict := same_bits(counts, counted)).passed:
            return verdict
        _, exact, _ = run(reference, in_f64(inputs) | {"replay_experts": experts})
        if not torch.equal(weights.isnan(), exact.isnan()):
            return Verdict(False, float("inf"), 1, "bounds", "NaN among the weights")
        error = ((weights - exact).abs() / (exact.abs() * 2**-19 + 1e-37)).nan_to_num(0)
        worst = float(error.max()) if error.numel() else 0.0
        return Verdict(worst <= 1, worst, 1, "bounds")


def _wrong_choice(inputs: dict, token: int, chosen: list[int]) -> str:
    """What is wrong with a token's experts beyond an error in f32; empty if nothing is."""
    if inputs.get("replay_experts") is not None and int(inputs["replay_experts"][token, 0]) >= 0:
        return "it does not have the experts that were given"
    z = inputs["logits"][token].double()
    scores = z.sigmoid() if inputs["scoring"] == "sigmoid" else z.softmax(dim=0)
    scores = scores + (0.0 if inputs["bias"] is None else inputs["bias"].double())
    if bool(scores.isnan().any()):
        return "scores with NaN must be ranked as the reference ranks them"
    bound = 2**-21 * (1 + float(scores.abs().max()))
    groups = scores.view(inputs["n_group"], -1)
    group_scores = groups.topk(min(2, groups.shape[1]), dim=1).values.sum(dim=1)
    last_group = float(group_scores.topk(inputs["topk_group"]).values[-1])
    size = groups.shape[1]
    if len(set(chosen)) != len(chosen) or min(chosen) < 0 or max(chosen) >= len(scores):
        return "its experts are not distinct ids"
    if any(float(group_scores[e // size]) < last_group - 2 * bound for e in chosen):
        return "an expert of a group that is not kept"
    values = scores[chosen]
    if bool((values[1:] > values[:-1] + bound).any()):
        return "its experts are not in descending order"
    for e in set(range(len(scores))) - set(chosen):
        if float(group_scores[e // size]) > last_group + 2 * bound and float(scores[e]) > float(values[-1]) + bound:
            return f"expert {e} has a larger score than one that was chosen"
    return ""


def _edges(case: type[MoeRouteCase], fills: tuple[str, ...]) -> tuple:
    sizes = ((1, 8), (17, 3), (32, 32), (33, 8), (257, 8), (600, 9), (1024, 4))
    return (
        *(case(tokens) for tokens in (0, 1, 70)),
        *(case(5, experts, min(topk, experts)) for experts, topk in sizes),
        *(case(9, scoring=scoring, fill=fill, normalize=normalize)
          for scoring in ("sigmoid", "softmax") for fill in fills for normalize in (True, False)),
        case(6, 300, 8, scoring="softmax"),
        case(6, 700, 8, scoring="softmax"),
    )  # fmt: skip


EDGES = (
    *_edges(MoeRouteCase, ("normal", "ties", "special", "far")),
    *(MoeRouteCase(20, 256, 8, 8, 4, scoring, fill, biased=fill == "normal")
      for scoring in ("sigmoid", "softmax") for fill in ("normal", "ties", "special")),
    *(MoeRouteCase(11, experts, topk, n_group, topk_group)
      for experts, topk, n_group, topk_group in ((12, 3, 12, 5), (15, 4, 3, 2), (96, 6, 32, 3), (512, 8, 16, 16))),
    *(MoeRouteCase(10, scoring=scoring, replay=replay, biased=False)
      for scoring in ("sigmoid", "softmax") for replay in ("u8", "i32", "some")),
    MoeRouteCase(10, 256, 8, 8, 4, replay="some"),
)  # fmt: skip
EDGES_BWD = _edges(MoeRouteBwdCase, ("normal", "absent"))
GLM5 = (MoeRouteCase(4096), MoeRouteCase(4096, 256, 8, 8, 4), MoeRouteCase(16))
GLM5_BWD = (MoeRouteBwdCase(4096),)
ROUTING = RoutingRule(
    None, "a choice by scores in f32: the reference's but for scores closer than their error; weights within 2^-19"
)
_ROWS_BWD = ("d_weights", "logits", "chosen")
WORKLOADS = {
    "moe_route": Workload(MoeRouteCase, EDGES, GLM5, ROUTING),
    "moe_route_bwd": Workload(MoeRouteBwdCase, EDGES_BWD, GLM5_BWD, WITHIN_TORCH, rows=_ROWS_BWD),
}
