"""fp8_gemm: the product of two e4m3 matrices with a scale for every 128 of k."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract, ceil_div
from glm5_ops.ops._op import op, stream_of, workspace_of

CONTRACT = Contract(
    "fp8_gemm",
    a="e4m3[m, k] strided",
    a_scales="f32[m, ceil(k/128)] columns",
    b="e4m3[n, k] strided",
    b_scales="f32[ceil(n/128), ceil(k/128)] any",
    b_row_scales="f32[n, ceil(k/128)] columns",
    out="bf16|f32[m, n] strided",
)


def _check(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> dict:
    name = "b_row_scales" if _scales_are_per_row(b, b_scales) else "b_scales"
    return CONTRACT.check(a=a, a_scales=a_scales, b=b, **{name: b_scales})


def _scales_are_per_row(b: Tensor, b_scales: Tensor) -> bool:
    """Told by the shape: ceil(n/128) rows of scales, or n. For n = 1 the two mean the same."""
    return b_scales.dim() == 2 and b_scales.shape[0] != ceil_div(b.shape[0], 128) and b_scales.shape[0] == b.shape[0]


def _launch(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out: Tensor, accumulate: bool) -> None:
    (m, k), n = a.shape, b.shape[0]
    per_row = _scales_are_per_row(b, b_scales)
    workspace = workspace_of(a, lambda: _native.fp8_gemm_workspace_bytes(m, n, k))
    _native.fp8_gemm(a, a_scales, b, b_scales, per_row, out, accumulate, workspace, stream_of(a))


def _outputs(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out_dtype: torch.dtype) -> Tensor:
    CONTRACT.require(out_dtype in CONTRACT.lines["out"].dtypes, "out_dtype", "bf16 or f32", out_dtype)
    return CONTRACT.empty("out", _check(a, a_scales, b, b_scales), like=a, dtype=out_dtype)


@op(fake=_outputs)
def fp8_gemm(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out_dtype: torch.dtype) -> Tensor:
    """``out[i, j] = sum_k a[i, k] * a_scale * b[j, k] * b_scale``: ``a @ b.T`` of quantised matrices.

    Products are summed in f32 over each 128 of k and then promoted with their two scales into an f32 total, ascending
    in k (DeepSeek-V3, arXiv 2412.19437, section 3.3.2). A row of ``out`` has the same bits whatever m is and however
    many threads run; on CPU every instruction set gives the same bits. k = 0 gives zeros; NaN spreads as in any sum.

    Args:
        a: activations, e4m3[m, k], m >= 0; rows may be strided.
        a_scales: f32[m, ceil(k/128)], column-major, as ``quantize_fp8(x, "1x128")`` returns them.
        b: weights, e4m3[n, k]; rows may be strided.
        b_scales: f32[ceil(n/128), ceil(k/128)], any strides (``quantize_fp8(w, "128x128")``, a checkpoint's
            ``weight_scale_inv``, or its transpose); or one scale per row, f32[n, ceil(k/128)] column-major, as for
            ``a``.
        out_dtype: torch.bfloat16 or torch.float32; rounded once, at the end.

    Returns:
        out, [m, n], row-major. CUDA: k must be a multiple of 16.
    """
    out = _outputs(a, a_scales, b, b_scales, out_dtype)
    _launch(a, a_scales, b, b_scales, out, accumulate=False)
    return out


def _outputs_into(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out: Tensor, accumulate: bool = False
) -> None:
    lengths = _check(a, a_scales, b, b_scales)
    line = CONTRACT.lines["out"]
    CONTRACT.require(line.fits(out, lengths) and out.device == a.device, "out", line.expectation(lengths), out)


@op(fake=_outputs_into, mutates=("out",))
def fp8_gemm_into(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out: Tensor, accumulate: bool = False
) -> None:
    """``fp8_gemm`` into a given tensor: ``out = a @ b.T``, or ``out += a @ b.T`` with ``accumulate``.

    The sum of products is the one of ``fp8_gemm``; it is added to ``out`` once, in f32, and rounded once.

    Args:
        a, a_scales, b, b_scales: as for ``fp8_gemm``.
        out: bf16 or f32 [m, n]; rows may be strided. It must not overlap the inputs.
        accumulate: add to ``out`` instead of replacing it.
    """
    _outputs_into(a, a_scales, b, b_scales, out, accumulate)
    _launch(a, a_scales, b, b_scales, out, accumulate)
