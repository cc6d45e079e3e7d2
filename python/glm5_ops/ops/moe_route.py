"""moe_route: from the router's logits to every token's experts and their weights, and the gradient of the weights."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import differentiable, op, stream_of

CONTRACT = Contract(
    "moe_route",
    differentiable=True,
    logits="f32[tokens, experts] strided",
    bias="f32[experts]?",
    replay_experts="u8|i32[tokens, topk]?",
    chosen="i32[tokens, topk]",
    weights="f32[tokens, topk]",
    counts="i32[experts]",
)
BWD = Contract(
    "moe_route_bwd",
    d_weights="f32[tokens, topk]",
    logits="f32[tokens, experts] strided",
    chosen="i32[tokens, topk]",
    d_logits="f32[tokens, experts]",
)
SCORINGS = ("sigmoid", "softmax")
MOST_EXPERTS, MOST_CHOSEN = 1024, 32  # csrc/ops/moe_route/moe_route.h


def _outputs(
    logits: Tensor,
    bias: Tensor | None,
    topk: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
    replay_experts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    require = CONTRACT.require
    lengths = CONTRACT.check(logits=logits, bias=bias, replay_experts=replay_experts)
    experts = lengths["experts"]
    require(experts <= MOST_EXPERTS, "logits", f"of at most {MOST_EXPERTS} experts", logits)
    require(lengths.get("topk", topk) == topk, "replay_experts", f"u8|i32[tokens, {topk}]", replay_experts)
    require(scoring in SCORINGS, "scoring", "sigmoid or softmax", scoring)
    divides = 1 <= n_group <= MOST_CHOSEN and experts % n_group == 0
    require(divides, "n_group", f"a divisor of the {experts} experts of at most {MOST_CHOSEN}", n_group)
    require(1 <= topk_group <= n_group, "topk_group", "1 .. n_group", topk_group)
    most = min(MOST_CHOSEN, experts // n_group * topk_group)
    require(1 <= topk <= most, "topk", f"1 .. {most}, {topk_group} groups of {experts // n_group} experts", topk)
    require(bias is None or not bias.requires_grad, "bias", "a tensor that needs no grad", bias)
    lengths["topk"] = topk
    return tuple(CONTRACT.empty(name, lengths, like=logits) for name in ("chosen", "weights", "counts"))


@op(fake=_outputs)
def moe_route(
    logits: Tensor,
    bias: Tensor | None,
    topk: int,
    n_group: int = 1,
    topk_group: int = 1,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
    replay_experts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose ``topk`` experts for every token by ``score(logits) + bias``; weigh them by their scores without the bias.

    Of ``n_group`` groups of neighbouring experts only the ``topk_group`` best take part, by the sum of their two
    largest biased scores (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Slots come in descending order of the biased
    score, which the sums over slots follow; ties go to the smaller id, NaN ranks last. On every machine the same bits,
    for every batch. Differentiable: the weights, in ``logits``; the choice and the bias get no gradient.

    Args:
        logits: f32[tokens, experts]; rows may be strided.
        bias: added for the choice alone; None for none.
        topk: how many experts a token gets, at most 32.
        n_group, topk_group: into how many groups the experts fall, and how many of them are kept.
        scoring: ``sigmoid`` or ``softmax``.
        normalize: divide a token's weights by the sum of its scores + 1e-20.
        scale: multiplies the weights afterwards.
        replay_experts: ids of an earlier run, u8 or i32, which are taken as they stand, in their order; weights come
            from ``logits`` as for a choice of one's own, with their gradient. A row of -1 (i32) is chosen anew. On the
            CPU ids that repeat or are none are refused; on CUDA an id that is too large makes the row's weights NaN.

    Returns:
        experts i32[tokens, topk], weights f32[tokens, topk], counts i32[experts]: how often each expert was chosen.
    """
    chosen, weights, counts = _outputs(
        logits, bias, topk, n_group, topk_group, scoring, normalize, scale, replay_experts
    )
    as_bytes = replay_experts is not None and replay_experts.dtype == torch.uint8
    replays = (replay_experts, None) if as_bytes else (None, replay_experts)
    _native.moe_route(
        logits, bias, *replays, n_group, topk_group, scoring == "softmax", normalize, scale, chosen, weights, counts,
        stream_of(logits),
    )  # fmt: skip
    return chosen, weights, counts


def _outputs_bwd(
    d_weights: Tensor,
    logits: Tensor,
    chosen: Tensor,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    lengths = BWD.check(d_weights=d_weights, logits=logits, chosen=chosen)
    BWD.require(lengths["experts"] <= MOST_EXPERTS, "logits", f"of at most {MOST_EXPERTS} experts", logits)
    BWD.require(lengths["topk"] <= MOST_CHOSEN, "chosen", f"of at most {MOST_CHOSEN} slots", chosen)
    BWD.require(scoring in SCORINGS, "scoring", "sigmoid or softmax", scoring)
    return BWD.empty("d_logits", lengths, like=logits)


@op(fake=_outputs_bwd)
def moe_route_bwd(
    d_weights: Tensor,
    logits: Tensor,
    chosen: Tensor,
    scoring: str = "sigmoid",
    normalize: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """The gradient of ``moe_route``'s weights for the logits.

    Args:
        d_weights: f32[tokens, topk].
        logits, scoring, normalize, scale: as for ``moe_route``.
        chosen: the experts that it returned, distinct in a row; an id that is no expert takes no part.

    Returns:
        d_logits, f32[tokens, experts]; with sigmoid scores 0 for every expert that was not chosen.
    """
    d_logits = _outputs_bwd(d_weights, logits, chosen, scoring, normalize, scale)
    _native.moe_route_bwd(
        d_weights, logits, chosen, scoring == "softmax", normalize, scale, d_logits, stream_of(logits)
    )
    return d_logits


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    logits, _, _, _, _, ctx.scoring, ctx.normalize, ctx.scale, _ = inputs
    ctx.save_for_backward(logits, output[0])
    ctx.mark_non_differentiable(output[0], output[2])


def _backward(ctx: torch.autograd.function.FunctionCtx, _chosen: object, d_weights: Tensor, _counts: object) -> tuple:
    logits, chosen = ctx.saved_tensors
    d_logits = moe_route_bwd(d_weights.contiguous(), logits, chosen, ctx.scoring, ctx.normalize, ctx.scale)
    return d_logits, *[None] * 8


differentiable(moe_route, save=_save, backward=_backward)
