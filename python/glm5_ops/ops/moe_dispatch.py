"""moe_dispatch: tokens into expert order, with their rows moved or without."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "moe_dispatch",
    differentiable=True,
    x="bf16|e4m3[tokens, hidden] strided",
    experts="i32[tokens, topk]",
    scales="f32[tokens, ceil(hidden/128)] columns?",
    rows="bf16|e4m3[rows, hidden]",
    row_scales="f32[rows, ceil(hidden/128)] columns",
    slots="i32[tokens, topk]",
    offsets="i32[bounds]",
    row_tokens="i32[rows]",
)
SORT = Contract(
    "moe_sort",
    experts="i32[tokens, topk]",
    slots="i32[tokens, topk]",
    offsets="i32[bounds]",
    row_tokens="i32[rows]",
)
MOST_EXPERTS = 1024  # csrc/ops/moe_dispatch/moe_dispatch.h


def _sorted_outputs(contract: Contract, lengths: dict, like: Tensor, num_experts: int, first_expert: int) -> tuple:
    contract.require(0 <= num_experts <= MOST_EXPERTS, "num_experts", f"0 .. {MOST_EXPERTS}", num_experts)
    contract.require(0 <= first_expert < 2**31, "first_expert", "0 or more", first_expert)
    lengths["rows"], lengths["bounds"] = lengths["tokens"] * lengths["topk"], num_experts + 1
    return tuple(contract.empty(name, lengths, like=like) for name in ("slots", "offsets", "row_tokens"))


def _outputs(
    x: Tensor, experts: Tensor, num_experts: int, first_expert: int = 0, scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lengths = CONTRACT.check(x=x, experts=experts, scales=scales)
    is_fp8 = x.dtype == torch.float8_e4m3fn
    CONTRACT.require((scales is not None) == is_fp8, "scales", "given with e4m3 and only then", scales)
    made = _sorted_outputs(CONTRACT, lengths, x, num_experts, first_expert)
    rows = CONTRACT.empty("rows", lengths, like=x, dtype=x.dtype)
    if is_fp8:
        return rows, CONTRACT.empty("row_scales", lengths, like=x), *made
    return rows, torch.empty(0, 0, dtype=torch.float32, device=x.device), *made


@op(fake=_outputs)
def moe_dispatch(
    x: Tensor, experts: Tensor, num_experts: int, first_expert: int = 0, scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Copy every token's row to each of its experts: ``rows[slots[t, k]] = x[t]``, rows sorted by expert.

    A stable counting sort: within an expert rows come in order of tokens, then of k. Ids that are none of
    ``first_expert .. first_expert + num_experts``, such as -1 for a dropped assignment, get no row, their slot is -1.
    ``tokens * topk`` rows are allocated whatever the ids say, and ``offsets`` stay on the device: nothing waits for
    sizes. The rows from ``offsets[-1]`` on, where there are such, are zeros, and their ``row_tokens`` -1.

    Differentiable in ``x`` if that is bf16: the gradient of a token is the sum of its rows' in f32, k ascending
    (``moe_combine`` with weights of one), rounded once; what lies in rows from ``offsets[-1]`` on is not read.

    Args:
        x: bf16[tokens, hidden], or e4m3 as ``quantize_fp8`` 1x128 gives it; rows may be strided.
        experts: i32[tokens, topk], as ``moe_route`` gives them.
        num_experts: how many experts this call serves, at most 1024.
        first_expert: the first of them.
        scales: with e4m3, and only then: f32[tokens, ceil(hidden/128)] column-major. They move along unchanged.

    Returns:
        rows ``[tokens * topk, hidden]`` of x's type; row_scales ``f32[tokens * topk, ceil(hidden/128)]``
        column-major, empty without scales; slots ``i32[tokens, topk]``; offsets ``i32[num_experts + 1]``;
        row_tokens ``i32[tokens * topk]``.
    """
    rows, row_scales, slots, offsets, row_tokens = _outputs(x, experts, num_experts, first_expert, scales)
    moved = None if scales is None else row_scales
    _run(_as_bytes(x), scales, experts, first_expert, _as_bytes(rows), moved, slots, offsets, row_tokens)
    return rows, row_scales, slots, offsets, row_tokens


def _as_bytes(rows: Tensor) -> Tensor:
    return (rows if rows.shape[1] > 1 else rows.contiguous()).view(torch.uint8)


def _run(x, scales, experts, first_expert, rows, row_scales, slots, offsets, row_tokens) -> None:
    sizes = (experts.numel(), offsets.shape[0] - 1)
    workspace = workspace_of(
        experts,
        lambda: _native.moe_dispatch_workspace_bytes(*sizes),
        lambda: _native.moe_dispatch_cuda_workspace_bytes(*sizes),
    )
    _native.moe_dispatch(
        x, scales, experts, first_expert, rows, row_scales, slots, offsets, row_tokens, workspace, stream_of(experts)
    )


def _outputs_sort(experts: Tensor, num_experts: int, first_expert: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return _sorted_outputs(SORT, SORT.check(experts=experts), experts, num_experts, first_expert)


@op(fake=_outputs_sort)
def moe_sort(experts: Tensor, num_experts: int, first_expert: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """``moe_dispatch`` without rows: the permutation alone, for a product that gathers its rows by ``row_tokens``.

    Args:
        experts, num_experts, first_expert: as for ``moe_dispatch``.

    Returns:
        slots, offsets, row_tokens, as those of ``moe_dispatch``.
    """
    slots, offsets, row_tokens = _outputs_sort(experts, num_experts, first_expert)
    _run(None, None, experts, first_expert, None, None, slots, offsets, row_tokens)
    return slots, offsets, row_tokens


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: torch.autograd.function.FunctionCtx, d_rows: Tensor, *_others: object) -> tuple:
    (slots,) = ctx.saved_tensors
    d_x = torch.ops.glm5_ops.moe_combine(d_rows.contiguous(), slots, None, None)
    return d_x, None, None, None, None


differentiable(moe_dispatch, save=_save, backward=_backward)
