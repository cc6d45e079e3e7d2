"""out[r] = rows[r] @ w[e].T for every row r of expert e;  dw[e] = a[:, of e] @ b[:, of e].T"""

from itertools import pairwise

import torch
from torch import Tensor


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
    x = _wide(rows, row_scales, w_scales)
    bounds = offsets.tolist()
    count = len(x) if row_tokens is None else len(row_tokens)
    parts = [x.new_zeros(bounds[0], w.shape[1])]
    for e, (begin, end) in enumerate(pairwise(bounds)):
        own = x[begin:end] if row_tokens is None else x[row_tokens[begin:end].long()]
        parts.append(own @ _weight(w, w_scales, e).to(x.dtype).t())
    parts.append(x.new_zeros(count - bounds[-1], w.shape[1]))
    return torch.cat(parts).to(out_dtype)


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
    wide = torch.promote_types(out.dtype, torch.float32)
    product = grouped_gemm(rows, w, offsets, wide, row_scales, w_scales, row_tokens)
    begin, end = int(offsets[0]), int(offsets[-1])
    out[begin:end] = (out[begin:end] + product[begin:end] if accumulate else product[begin:end]).to(out.dtype)


def grouped_gemm_masked(
    rows: Tensor,
    w: Tensor,
    counts: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    experts, max_rows, k = rows.shape
    x = _wide(rows.reshape(experts * max_rows, k), row_scales, w_scales).view(experts, max_rows, k)
    out = x.new_zeros(experts, max_rows, w.shape[1])
    for e, count in enumerate(counts.tolist()):
        out[e, :count] = x[e, :count] @ _weight(w, w_scales, e).to(x.dtype).t()
    return out.to(out_dtype)


def grouped_gemm_wgrad(
    a: Tensor,
    b: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    a_scales: Tensor | None = None,
    b_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    products = [
        _columns(a, a_scales, begin, end, e) @ _columns(b, b_scales, begin, end, e).t()
        for e, (begin, end) in enumerate(pairwise(offsets.tolist()))
    ]
    return torch.stack(products).to(out_dtype) if products else a.new_zeros(0, len(a), len(b), dtype=out_dtype)


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
    product = grouped_gemm_wgrad(a, b, offsets, torch.promote_types(out.dtype, torch.float32), a_scales, b_scales)
    out.copy_(out + product if accumulate else product)


def _wide(rows: Tensor, row_scales: Tensor | None, w_scales: Tensor | None) -> Tensor:
    """The rows in f32, or f64 where a floating input is."""
    if row_scales is None:
        return rows.to(
            torch.float64 if torch.float64 in (rows.dtype, getattr(w_scales, "dtype", None)) else torch.float32
        )
    group = torch.arange(rows.shape[1], device=rows.device) // 128
    return rows.to(row_scales.dtype) * row_scales[:, group]


def _weight(w: Tensor, scales: Tensor | None, e: int) -> Tensor:
    if scales is None:
        return w[e].to(torch.float64 if w.dtype == torch.float64 else torch.float32)
    n, k = w.shape[1:]
    row, column = (torch.arange(size, device=w.device) // 128 for size in (n, k))
    return w[e].to(scales.dtype) * scales[e][row][:, column]


def _columns(x: Tensor, scales: Tensor | None, begin: int, end: int, e: int) -> Tensor:
    """Columns begin .. end, with e4m3 times the scales of the expert's groups of 128, which start anew at `begin`."""
    part = x[:, begin:end]
    if scales is None:
        return part.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    group = begin // 128 + e + torch.arange(end - begin, device=x.device) // 128
    return part.to(scales.dtype) * scales[:, group]
