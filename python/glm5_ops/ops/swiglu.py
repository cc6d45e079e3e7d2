"""swiglu: gate and up become their product, perhaps quantised on the way out, and the gradient."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import differentiable, op, stream_of

CONTRACT = Contract(
    "swiglu",
    differentiable=True,
    gate_up="bf16|f32[rows, gate_and_up] strided",
    offsets="i32[bounds]?",
    out="bf16[rows, intermediate]",
)
FP8 = Contract(
    "swiglu_fp8",
    gate_up="bf16|f32[rows, gate_and_up] strided",
    offsets="i32[bounds]?",
    values="e4m3[rows, intermediate]",
    scales="f32[rows, ceil(intermediate/128)] columns",
)
BWD = Contract(
    "swiglu_bwd",
    d_out="bf16[rows, intermediate] strided",
    gate_up="bf16|f32[rows, gate_and_up] strided",
    offsets="i32[bounds]?",
    d_gate_up="bf16|f32[rows, gate_and_up]",
)
SMALLEST_FLOOR = 2.0**-100


def _lengths(contract: Contract, gate_up: Tensor, limit: float | None, offsets: Tensor | None, **more: Tensor) -> dict:
    lengths = contract.check(gate_up=gate_up, offsets=offsets, **more)
    both = lengths["gate_and_up"]
    contract.require(both % 2 == 0, "gate_up", "of an even number of columns", gate_up)
    if "intermediate" in lengths:
        contract.require(2 * lengths["intermediate"] == both, "d_out", f"bf16[rows, {both // 2}]", more["d_out"])
    lengths["intermediate"] = both // 2
    contract.require(limit is None or limit > 0, "limit", "None or above 0", limit)
    contract.require(offsets is None or offsets.shape[0] >= 1, "offsets", "i32[experts + 1]", offsets)
    return lengths


def _limit(limit: float | None) -> float:
    return float("inf") if limit is None else limit


def _outputs(gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    return CONTRACT.empty("out", _lengths(CONTRACT, gate_up, limit, offsets), like=gate_up)


@op(fake=_outputs)
def swiglu(gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    """``out = silu(gate) * up``, where a row of ``gate_up`` is the gate's columns and then up's.

    ``silu(g) = g / (1 + exp(-g))`` in f32 with an exp of our own (csrc/core/exp.h), rounded once, to bf16: the same
    bits on every machine. Differentiable in ``gate_up``.

    Args:
        gate_up: ``[rows, 2 * intermediate]``, bf16 or f32; rows may be strided.
        limit: holds gate to at most the limit and up to within -limit .. limit before anything else, as models trained
            with a clamp want it; what it holds gets no gradient.
        offsets: of experts, ``i32[experts + 1]``, as ``moe_dispatch`` gives them: rows from the last one on, which no
            expert owns, are not read, and are zeros in ``out`` and in the gradient.

    Returns:
        out, bf16[rows, intermediate].
    """
    out = _outputs(gate_up, limit, offsets)
    _native.swiglu(gate_up, _limit(limit), offsets, out, stream_of(gate_up))
    return out


def _outputs_fp8(
    gate_up: Tensor,
    limit: float | None = None,
    offsets: Tensor | None = None,
    power_of_two: bool = False,
    amax_floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    lengths = _lengths(FP8, gate_up, limit, offsets)
    FP8.require(SMALLEST_FLOOR <= amax_floor <= 448.0, "amax_floor", "between 2^-100 and 448", amax_floor)
    return FP8.empty("values", lengths, like=gate_up), FP8.empty("scales", lengths, like=gate_up)


@op(fake=_outputs_fp8)
def swiglu_fp8(
    gate_up: Tensor,
    limit: float | None = None,
    offsets: Tensor | None = None,
    power_of_two: bool = False,
    amax_floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """``quantize_fp8(swiglu(gate_up, limit, offsets), "1x128", power_of_two, amax_floor)``, to the bit, in one pass.

    Args:
        gate_up, limit, offsets: as for ``swiglu``.
        power_of_two, amax_floor: as for ``quantize_fp8``.

    Returns:
        values, e4m3[rows, intermediate], and scales, f32[rows, ceil(intermediate/128)] column-major.
    """
    values, scales = _outputs_fp8(gate_up, limit, offsets, power_of_two, amax_floor)
    _native.swiglu_fp8(gate_up, _limit(limit), offsets, power_of_two, amax_floor, values, scales, stream_of(gate_up))
    return values, scales


def _outputs_bwd(d_out: Tensor, gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    lengths = _lengths(BWD, gate_up, limit, offsets, d_out=d_out)
    return BWD.empty("d_gate_up", lengths, like=gate_up, dtype=gate_up.dtype)


@op(fake=_outputs_bwd)
def swiglu_bwd(d_out: Tensor, gate_up: Tensor, limit: float | None = None, offsets: Tensor | None = None) -> Tensor:
    """The gradient of ``swiglu`` for ``d_out``, the gradient of its output.

    Args:
        d_out: bf16[rows, intermediate].
        gate_up, limit, offsets: as for ``swiglu``.

    Returns:
        d_gate_up, of gate_up's type and shape, rounded once.
    """
    d_gate_up = _outputs_bwd(d_out, gate_up, limit, offsets)
    _native.swiglu_bwd(d_out, gate_up, _limit(limit), offsets, d_gate_up, stream_of(gate_up))
    return d_gate_up


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    gate_up, ctx.limit, offsets = inputs
    ctx.save_for_backward(gate_up, offsets)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor) -> tuple:
    gate_up, offsets = ctx.saved_tensors
    d_out = d_out if d_out.shape[-1] <= 1 or d_out.stride(-1) == 1 else d_out.contiguous()
    return swiglu_bwd(d_out, gate_up, ctx.limit, offsets), None, None


differentiable(swiglu, save=_save, backward=_backward)
