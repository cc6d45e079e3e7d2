"""moe_combine: the weighted sum of what its experts gave a token, and the gradient."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indices import check_named_once
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "moe_combine",
    differentiable=True,
    rows="bf16[rows, hidden] strided",
    slots="i32[tokens, topk]",
    weights="f32[tokens, topk]?",
    shared="bf16[tokens, hidden] strided?",
    out="bf16[tokens, hidden]",
    d_out="bf16[tokens, hidden] strided",
    d_rows="bf16[rows, hidden]",
    d_weights="f32[tokens, topk]",
)


def _outputs(rows: Tensor, slots: Tensor, weights: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
    return CONTRACT.empty("out", CONTRACT.check(rows=rows, slots=slots, weights=weights, shared=shared), like=rows)


@op(fake=_outputs)
def moe_combine(rows: Tensor, slots: Tensor, weights: Tensor | None = None, shared: Tensor | None = None) -> Tensor:
    """``out[t] = sum_k weights[t, k] * rows[slots[t, k]] + shared[t]``, in f32, k ascending, rounded once.

    A chain of fused multiply-adds from zero, then ``shared``: the same bits on every machine, whatever the other tokens
    are and wherever the rows lie. Differentiable in rows, weights and shared.

    Args:
        rows: bf16[rows, hidden], what the experts gave; rows may be strided.
        slots: i32[tokens, topk], the row of each (token, k), as ``moe_dispatch`` gives them. One that is no row (-1, or
            as great as their number) is absent: nothing is read for it. Gradients need every row to be named at most
            once.
        weights: f32[tokens, topk], or None for ones.
        shared: bf16[tokens, hidden], the shared expert's output, or None.

    Returns:
        out, bf16[tokens, hidden]; zeros where all slots are absent and there is no ``shared``.
    """
    out = _outputs(rows, slots, weights, shared)
    _native.moe_combine(rows, slots, weights, shared, out, stream_of(rows))
    return out


def _outputs_bwd(
    d_out: Tensor, rows: Tensor, slots: Tensor, weights: Tensor | None = None, check_indices: bool = False
) -> tuple[Tensor, Tensor]:
    lengths = CONTRACT.check(d_out=d_out, rows=rows, slots=slots, weights=weights)
    wanted = lengths if weights is not None else lengths | {"tokens": 0}
    return CONTRACT.empty("d_rows", lengths, like=rows), CONTRACT.empty("d_weights", wanted, like=rows)


@op(fake=_outputs_bwd)
def moe_combine_bwd(
    d_out: Tensor, rows: Tensor, slots: Tensor, weights: Tensor | None = None, check_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """``moe_combine``'s gradient: ``d_rows[slots[t, k]] = weights[t, k] * d_out[t]``, ``d_weights = d_out . rows``.

    No sums across tokens; a product of d_weights is summed in f32 in one fixed order: the same bits on every machine.
    The gradient of ``shared`` is ``d_out``.

    Args:
        d_out: bf16[tokens, hidden].
        rows, slots, weights: as for ``moe_combine``.
        check_indices: refuse slots that name a row twice on a GPU too, which waits for it. The CPU always does; on a
            GPU without this the last place that names a row gives its gradient.

    Returns:
        d_rows, bf16[rows, hidden], zeros for rows that no slot names; d_weights, f32[tokens, topk], 0 at absent slots
        (0 rows without weights).
    """
    d_rows, d_weights = _outputs_bwd(d_out, rows, slots, weights, check_indices)
    if check_indices:
        check_named_once("moe_combine_bwd", slots, rows.shape[0])
    workspace = workspace_of(
        rows,
        lambda: _native.moe_combine_bwd_workspace_bytes(rows.shape[0]),
        lambda: _native.moe_combine_bwd_cuda_workspace_bytes(rows.shape[0]),
    )
    wanted = None if weights is None else d_weights
    _native.moe_combine_bwd(d_out, rows, slots, weights, d_rows, wanted, workspace, stream_of(rows))
    return d_rows, d_weights


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    rows, slots, weights, shared = inputs
    ctx.for_shared = shared is not None
    ctx.for_rows = rows.requires_grad or (weights is not None and weights.requires_grad)
    ctx.save_for_backward(rows, slots, weights)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor) -> tuple:
    rows, slots, weights = ctx.saved_tensors
    d_rows = d_weights = None
    if ctx.for_rows:
        d_rows, d_weights = moe_combine_bwd(d_out.contiguous(), rows, slots, weights)
    return d_rows, None, None if weights is None else d_weights, d_out if ctx.for_shared else None


differentiable(moe_combine, save=_save, backward=_backward)
