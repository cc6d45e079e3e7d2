"""grouped_gemm: every expert's rows times its own matrix, and the gradient of these matrices."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indices import check_counts, check_offsets, check_row_tokens
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "grouped_gemm",
    differentiable=True,
    rows="bf16|e4m3[tokens, k] strided",
    w="bf16[experts, n, k] either",
    w_e4m3="e4m3[experts, n, k] strided",
    offsets="i32[bounds]",
    row_scales="f32[tokens, ceil(k/128)] columns",
    w_scales="f32[experts, ceil(n/128), ceil(k/128)] any",
    row_tokens="i32[rows]?",
    masked_rows="bf16|e4m3[experts, max_rows, k]",
    counts="i32[experts]",
    out="bf16|f32[rows, n] strided",
)
WGRAD = Contract(
    "grouped_gemm_wgrad",
    a="bf16[n, rows] either",
    b="bf16[k, rows] either",
    a_e4m3="e4m3[n, rows] strided",
    b_e4m3="e4m3[k, rows] strided",
    offsets="i32[bounds]",
    a_scales="f32[n, groups] columns",
    b_scales="f32[k, groups] columns",
    out="bf16|f32[experts, n, k]",
)


def _check(rows: Tensor, w: Tensor, row_scales: Tensor | None, w_scales: Tensor | None, **others: Tensor) -> dict:
    """Scales stand beside e4m3, and only there."""
    has_scales, is_scaled = rows.dtype == torch.float8_e4m3fn, w.dtype == torch.float8_e4m3fn
    scales = {"row_scales": row_scales, "w_scales": w_scales}
    given = {name: value for name, value in scales.items() if value is not None}
    lengths = CONTRACT.check(**{"rows": rows, "w_e4m3" if is_scaled else "w": w}, **others, **given)
    for name, of, wanted in (("row_scales", "rows", has_scales), ("w_scales", "w", is_scaled)):
        CONTRACT.require(wanted == (name in given), name, f"given with e4m3 in {of}, and only then", scales[name])
    CONTRACT.require(is_scaled or not has_scales, "w", "e4m3 as rows are", w)
    return lengths


def _check_offsets(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    row_scales: Tensor | None,
    w_scales: Tensor | None,
    row_tokens: Tensor | None,
) -> dict:
    lengths = _check(rows, w, row_scales, w_scales, offsets=offsets, row_tokens=row_tokens)
    bounds = w.shape[0] + 1
    CONTRACT.require(lengths["bounds"] == bounds, "offsets", f"i32[experts + 1], which is {bounds}", offsets)
    lengths.setdefault("rows", lengths["tokens"])
    return lengths


def _check_values(rows: Tensor, offsets: Tensor, row_tokens: Tensor | None) -> None:
    check_offsets("grouped_gemm", offsets, len(rows) if row_tokens is None else len(row_tokens))
    if row_tokens is not None:
        check_row_tokens("grouped_gemm", row_tokens, offsets, len(rows))


def _launch(
    rows: Tensor,
    w: Tensor,
    ranges: Tensor,
    out: Tensor,
    accumulate: bool,
    row_scales: Tensor | None,
    w_scales: Tensor | None,
    row_tokens: Tensor | None = None,
    *,
    max_rows: int = 0,
    clear_rest: bool,
) -> None:
    sizes = (w.shape[0], out.shape[0], *w.shape[1:], row_tokens is not None)
    workspace = workspace_of(
        rows,
        lambda: _native.grouped_gemm_workspace_bytes(*sizes),
        lambda: _native.grouped_gemm_cuda_workspace_bytes(*sizes),
    )
    stream = stream_of(rows)
    _native.grouped_gemm(
        rows, row_scales, w, w_scales, ranges, max_rows, row_tokens, accumulate, clear_rest, out, workspace, stream
    )


def _outputs(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    row_tokens: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    CONTRACT.require(out_dtype in CONTRACT.lines["out"].dtypes, "out_dtype", "bf16 or f32", out_dtype)
    lengths = _check_offsets(rows, w, offsets, row_scales, w_scales, row_tokens)
    return CONTRACT.empty("out", lengths, like=rows, dtype=out_dtype)


@op(fake=_outputs)
def grouped_gemm(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    row_tokens: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """``out[offsets[e]:offsets[e+1]] = rows[offsets[e]:offsets[e+1]] @ w[e].T`` for every expert e.

    A row of ``out`` has the bits that ``gemm`` (bf16) or ``fp8_gemm`` (e4m3) gives for it, whatever other rows and
    experts there are. No padding: experts may own any number of rows, none included. Rows that no expert owns are never
    read and become zeros.

    bf16 rows with e4m3 weights run on the CPU alone, by fp8_gemm's tree with 1 as the scale of a row; subnormal numbers
    count as zero there, and those of 2^120 or more as infinite.

    Args:
        rows: bf16 or e4m3[tokens, k], sorted by expert; rows may be strided.
        w: bf16[experts, n, k] with unit stride along n or k (so that ``w.mT`` serves the gradient of rows), or
            e4m3[experts, n, k] with unit stride along k.
        offsets: i32[experts + 1], where each expert's rows begin, ascending within the rows of out. On a GPU the host
            never reads it: an offset counts there as held within the rows and not below the ones before it.
        out_dtype: torch.bfloat16 or torch.float32; rounded once, at the end.
        row_scales: with e4m3 rows, and only then: f32[tokens, ceil(k/128)] column-major, as
            ``quantize_fp8(x, "1x128")`` returns them.
        w_scales: with e4m3 weights, and only then: f32[experts, ceil(n/128), ceil(k/128)], any strides.
        row_tokens: i32[rows] or None: row r of ``out`` is made of ``rows[row_tokens[r]]``, so that nothing need be
            moved into expert order beforehand. Entries that no expert owns are not looked at.
        check_indices: refuse bad offsets and row_tokens in a sentence on a GPU too, which waits for it. The CPU always
            does.

    Returns:
        out, [rows, n], where rows is the length of row_tokens if there is one. With bf16 differentiable in w and,
        without row_tokens, in rows: ``grouped_gemm`` with ``w.mT``, and ``grouped_gemm_wgrad``.
    """
    out = _outputs(rows, w, offsets, out_dtype, row_scales, w_scales, row_tokens, check_indices)
    if check_indices:
        _check_values(rows, offsets, row_tokens)
    _launch(rows, w, offsets, out, False, row_scales, w_scales, row_tokens, clear_rest=True)
    return out


def _outputs_into(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    out: Tensor,
    accumulate: bool = False,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    row_tokens: Tensor | None = None,
    check_indices: bool = False,
) -> None:
    lengths = _check_offsets(rows, w, offsets, row_scales, w_scales, row_tokens)
    needs_grad = torch.is_grad_enabled() and (rows.requires_grad or w.requires_grad or out.requires_grad)
    CONTRACT.require(not needs_grad, "out", "computed without gradient (grouped_gemm has one)", out)
    line = CONTRACT.lines["out"]
    CONTRACT.require(line.fits(out, lengths) and out.device == rows.device, "out", line.expectation(lengths), out)


@op(fake=_outputs_into, mutates=("out",))
def grouped_gemm_into(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    out: Tensor,
    accumulate: bool = False,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    row_tokens: Tensor | None = None,
    check_indices: bool = False,
) -> None:
    """``grouped_gemm`` into a given tensor, replacing it or, with ``accumulate``, adding to it.

    The sum of products is added to ``out`` once, in f32, and rounded once. Rows that no expert owns stay as they are.

    Args:
        rows, w, offsets, row_scales, w_scales, row_tokens, check_indices: as for ``grouped_gemm``.
        out: bf16 or f32[rows, n]; rows may be strided. It must not overlap the inputs.
        accumulate: add to ``out`` instead of replacing it.
    """
    _outputs_into(rows, w, offsets, out, accumulate, row_scales, w_scales, row_tokens, check_indices)
    if check_indices:
        _check_values(rows, offsets, row_tokens)
    _launch(rows, w, offsets, out, accumulate, row_scales, w_scales, row_tokens, clear_rest=False)


def _outputs_masked(
    rows: Tensor,
    w: Tensor,
    counts: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    CONTRACT.require(out_dtype in CONTRACT.lines["out"].dtypes, "out_dtype", "bf16 or f32", out_dtype)
    CONTRACT.check(masked_rows=rows, counts=counts)
    needs_grad = torch.is_grad_enabled() and (rows.requires_grad or w.requires_grad)
    CONTRACT.require(not needs_grad, "masked_rows", "without gradient (grouped_gemm has one)", rows)
    _check(rows.flatten(0, 1), w, row_scales, w_scales)
    CONTRACT.require(w.shape[0] == rows.shape[0], "w", f"{rows.shape[0]} experts, as masked_rows has", w)
    return torch.empty((*rows.shape[:2], w.shape[1]), dtype=out_dtype, device=rows.device)


@op(fake=_outputs_masked)
def grouped_gemm_masked(
    rows: Tensor,
    w: Tensor,
    counts: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """``out[e, :counts[e]] = rows[e, :counts[e]] @ w[e].T`` for every expert e, in a layout of fixed shape.

    For decoding, where shapes must not depend on the routing. The bits are those of ``grouped_gemm``. Rows beyond an
    expert's count are never read and become zeros. No gradient.

    Args:
        rows: bf16 or e4m3[experts, max_rows, k].
        w, w_scales: as for ``grouped_gemm``.
        counts: i32[experts], how many rows each expert owns. On a GPU the host never reads it: a count is held there
            within 0 and max_rows.
        out_dtype: torch.bfloat16 or torch.float32.
        row_scales: with e4m3 rows, and only then: f32[experts * max_rows, ceil(k/128)] column-major, as
            ``quantize_fp8(rows.flatten(0, 1), "1x128")`` returns them.
        check_indices: refuse bad counts in a sentence on a GPU too, which waits for it. The CPU always does.

    Returns:
        out, [experts, max_rows, n].
    """
    out = _outputs_masked(rows, w, counts, out_dtype, row_scales, w_scales, check_indices)
    max_rows = rows.shape[1]
    if check_indices:
        check_counts("grouped_gemm", counts, max_rows)
    if max_rows > 0:
        flat_rows, flat_out = rows.flatten(0, 1), out.flatten(0, 1)
        _launch(flat_rows, w, counts, flat_out, False, row_scales, w_scales, max_rows=max_rows, clear_rest=True)
    return out


def _check_wgrad(a: Tensor, b: Tensor, offsets: Tensor, a_scales: Tensor | None, b_scales: Tensor | None) -> dict:
    is_e4m3 = a.dtype == torch.float8_e4m3fn
    for name, scales in (("a_scales", a_scales), ("b_scales", b_scales)):
        WGRAD.require(is_e4m3 == (scales is not None), name, "given with e4m3 in a, and only then", scales)
    if is_e4m3:
        lengths = WGRAD.check(a_e4m3=a, b_e4m3=b, offsets=offsets, a_scales=a_scales, b_scales=b_scales)
    else:
        lengths = WGRAD.check(a=a, b=b, offsets=offsets)
    WGRAD.require(lengths["bounds"] >= 1, "offsets", "i32[experts + 1]", offsets)
    lengths["experts"] = lengths["bounds"] - 1
    if is_e4m3:
        least = lengths["rows"] // 128 + lengths["experts"]
        WGRAD.require(lengths["groups"] >= least, "a_scales", f"of {least} groups or more", a_scales)
    return lengths


def _launch_wgrad(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out: Tensor,
    accumulate: bool,
    a_scales: Tensor | None,
    b_scales: Tensor | None,
) -> None:
    sizes = (out.shape[0], a.shape[1], *out.shape[1:])
    workspace = workspace_of(a, lambda: _native.grouped_gemm_wgrad_workspace_bytes(*sizes))
    _native.grouped_gemm_wgrad(a, a_scales, b, b_scales, offsets, accumulate, out, workspace, stream_of(a))


def _outputs_wgrad(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    a_scales: Tensor | None = None,
    b_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    WGRAD.require(out_dtype in WGRAD.lines["out"].dtypes, "out_dtype", "bf16 or f32", out_dtype)
    lengths = _check_wgrad(a, b, offsets, a_scales, b_scales)
    return WGRAD.empty("out", lengths, like=a, dtype=out_dtype)


@op(fake=_outputs_wgrad)
def grouped_gemm_wgrad(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    a_scales: Tensor | None = None,
    b_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """``out[e] = a[:, offsets[e]:offsets[e+1]] @ b[:, offsets[e]:offsets[e+1]].T``: each expert's weight gradient.

    With the gradient of grouped_gemm's output as ``a = d_out.mT`` and its rows as ``b = rows.mT``. The bits are those
    of ``gemm`` (bf16) or ``fp8_gemm`` (e4m3) of the expert's columns. An expert without rows gets zeros; columns that
    no expert owns are not read.

    Args:
        a: bf16[n, rows] with unit stride along either dimension; or e4m3[n, rows], as
            ``quantize_fp8(d_out, "128x1", offsets=offsets)`` returns it.
        b: of a's type, [k, rows], likewise.
        offsets: i32[experts + 1], as for ``grouped_gemm``.
        out_dtype: torch.bfloat16 or torch.float32.
        a_scales, b_scales: with e4m3, and only then: f32[n, groups] and f32[k, groups], as that call returns them.
        check_indices: refuse bad offsets in a sentence on a GPU too, which waits for it. The CPU always does.

    Returns:
        out, [experts, n, k].
    """
    out = _outputs_wgrad(a, b, offsets, out_dtype, a_scales, b_scales, check_indices)
    if check_indices:
        check_offsets("grouped_gemm_wgrad", offsets, a.shape[1])
    _launch_wgrad(a, b, offsets, out, False, a_scales, b_scales)
    return out


def _outputs_wgrad_into(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out: Tensor,
    accumulate: bool = False,
    a_scales: Tensor | None = None,
    b_scales: Tensor | None = None,
    check_indices: bool = False,
) -> None:
    lengths = _check_wgrad(a, b, offsets, a_scales, b_scales)
    line = WGRAD.lines["out"]
    WGRAD.require(line.fits(out, lengths) and out.device == a.device, "out", line.expectation(lengths), out)


@op(fake=_outputs_wgrad_into, mutates=("out",))
def grouped_gemm_wgrad_into(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out: Tensor,
    accumulate: bool = False,
    a_scales: Tensor | None = None,
    b_scales: Tensor | None = None,
    check_indices: bool = False,
) -> None:
    """``grouped_gemm_wgrad`` into a given tensor, replacing it or, with ``accumulate``, adding to it.

    The sum of products is added to ``out`` once, in f32, and rounded once: the gradients of several micro-batches.

    Args:
        a, b, offsets, a_scales, b_scales, check_indices: as for ``grouped_gemm_wgrad``.
        out: bf16 or f32[experts, n, k]. It must not overlap the inputs.
        accumulate: add to ``out`` instead of replacing it.
    """
    _outputs_wgrad_into(a, b, offsets, out, accumulate, a_scales, b_scales, check_indices)
    if check_indices:
        check_offsets("grouped_gemm_wgrad", offsets, a.shape[1])
    _launch_wgrad(a, b, offsets, out, accumulate, a_scales, b_scales)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    rows, w, offsets, _, row_scales, w_scales, row_tokens, _ = inputs
    needs = ctx.needs_input_grad
    for name, value in (("row_scales", row_scales), ("w_scales", w_scales)):
        CONTRACT.require(value is None or not value.requires_grad, name, "a tensor that needs no grad", value)
    CONTRACT.require(
        row_tokens is None or not needs[0],
        "rows",
        "without gradient where row_tokens are given (move them first)",
        rows,
    )
    CONTRACT.require(not needs[0] or w_scales is None, "w", "bf16 where rows require grad", w)
    ctx.save_for_backward(rows, w, offsets, row_tokens)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor) -> tuple:
    rows, w, offsets, row_tokens = ctx.saved_tensors
    d_out = d_out.to(w.dtype).contiguous()
    d_rows = grouped_gemm(d_out, w.mT, offsets, rows.dtype) if ctx.needs_input_grad[0] else None
    d_w = None
    if ctx.needs_input_grad[1]:
        if row_tokens is not None:
            rows = rows[row_tokens.long().clamp(0, max(0, len(rows) - 1))]
        d_w = grouped_gemm_wgrad(d_out.mT, rows.mT, offsets, w.dtype)
    return d_rows, d_w, None, None, None, None, None, None


differentiable(grouped_gemm, save=_save, backward=_backward)
