"""out[i, j] = sum_k a[i, k] * a_scale[i, k/128] * b[j, k] * b_scale[j/128, k/128]"""

import torch
from torch import Tensor


def fp8_gemm(a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out_dtype: torch.dtype) -> Tensor:
    return (_scaled(a, a_scales) @ _scaled(b, b_scales).t()).to(out_dtype)


def fp8_gemm_into(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out: Tensor, accumulate: bool = False
) -> None:
    product = _scaled(a, a_scales) @ _scaled(b, b_scales).t()
    out.copy_(out + product if accumulate else product)


def _scaled(values: Tensor, scales: Tensor) -> Tensor:
    """The matrix in f32 (f64 with f64 scales): scales of rows or of blocks of 128 rows, for every 128 columns."""
    rows, cols = values.shape
    of_row = torch.arange(rows, device=values.device) // (1 if scales.shape[0] == rows else 128)
    of_col = torch.arange(cols, device=values.device) // 128
    return values.to(scales.dtype) * scales[of_row][:, of_col]
