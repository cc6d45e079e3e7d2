"""gemm: bf16 and f32 matrix products whose rows do not depend on the batch."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "gemm",
    differentiable=True,
    a="bf16|f32[m, k] either",
    b="bf16|f32[n, k] either",
    out="bf16|f32[m, n] strided",
    batched_a="bf16|f32[batch, m, k] either",
    batched_b="bf16|f32[batch, n, k] either",
    batched_out="bf16|f32[batch, m, n] strided",
)


def _names(a: Tensor) -> tuple[str, str, str]:
    return ("a", "b", "out") if a.dim() == 2 else ("batched_a", "batched_b", "batched_out")


def _check(a: Tensor, b: Tensor) -> dict:
    name_a, name_b, _ = _names(a)
    lengths = CONTRACT.check(**{name_a: a, name_b: b})
    CONTRACT.require(a.dtype == b.dtype, "b", f"{a.dtype} as a is", b)
    return lengths


def _launch(a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> None:
    (m, k), n = a.shape[-2:], b.shape[-2]
    if a.dim() == 2:
        a, b, out = a[None], b[None], out[None]
    workspace = workspace_of(a, lambda: _native.gemm_workspace_bytes(len(a), m, n, k))
    _native.gemm(a, b, out, accumulate, workspace, stream_of(a))


def _outputs(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    CONTRACT.require(out_dtype in CONTRACT.lines["out"].dtypes, "out_dtype", "bf16 or f32", out_dtype)
    return CONTRACT.empty(_names(a)[2], _check(a, b), like=a, dtype=out_dtype)


@op(fake=_outputs)
def gemm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    """``out[..., i, j] = sum_k a[..., i, k] * b[..., j, k]``, accumulated in f32.

    A row of ``out`` has the same bits whatever m, the batch and the number of threads are; torch's matmul does not
    promise that. On CPU every instruction set gives the same bits; with f32 operands CUDA gives them too. bf16 operands
    that are subnormal count as zero. k = 0 gives zeros.

    Args:
        a: bf16 or f32, [m, k] or [batch, m, k], with unit stride along m or k (a transposed view is as good as a copy).
        b: of a's type, [n, k] or [batch, n, k], with unit stride along n or k.
        out_dtype: torch.bfloat16 or torch.float32; rounded once, at the end.

    Returns:
        out, [m, n] or [batch, m, n]. Differentiable in a and b; the gradients are gemms of the same kind.
    """
    out = _outputs(a, b, out_dtype)
    _launch(a, b, out, accumulate=False)
    return out


def _outputs_into(a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
    lengths = _check(a, b)
    needs_grad = torch.is_grad_enabled() and (a.requires_grad or b.requires_grad or out.requires_grad)
    CONTRACT.require(not needs_grad, "out", "computed without gradient (gemm has one; or use torch.no_grad())", out)
    line = CONTRACT.lines[_names(a)[2]]
    CONTRACT.require(line.fits(out, lengths) and out.device == a.device, "out", line.expectation(lengths), out)


@op(fake=_outputs_into, mutates=("out",))
def gemm_into(a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
    """``gemm`` into a given tensor: ``out = a @ b.mT``, or ``out += a @ b.mT`` with ``accumulate``.

    The sum of products is the one of ``gemm``; it is added to ``out`` once, in f32, and rounded once. No gradient.

    Args:
        a, b: as for ``gemm``.
        out: bf16 or f32, [m, n] or [batch, m, n]; unit stride along n. It must not overlap the inputs.
        accumulate: add to ``out`` instead of replacing it.
    """
    _outputs_into(a, b, out, accumulate)
    _launch(a, b, out, accumulate)


def _save(ctx, inputs, output) -> None:
    a, b, _ = inputs
    ctx.save_for_backward(a, b)


def _backward(ctx, d_out: Tensor):
    a, b = ctx.saved_tensors
    d_out = d_out.to(a.dtype).contiguous()  # an expanded gradient has strides of zero
    d_a = gemm(d_out, b.mT, a.dtype) if ctx.needs_input_grad[0] else None
    d_b = gemm(d_out.mT, a.mT, b.dtype) if ctx.needs_input_grad[1] else None
    return d_a, d_b, None


differentiable(gemm, save=_save, backward=_backward)
