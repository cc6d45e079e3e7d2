"""out[..., i, j] = sum_k a[..., i, k] * b[..., j, k]"""

import torch
from torch import Tensor


def gemm(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    return (a.to(wide) @ b.to(wide).mT).to(out_dtype)


def gemm_into(a: Tensor, b: Tensor, out: Tensor, accumulate: bool = False) -> None:
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    product = a.to(wide) @ b.to(wide).mT
    out.copy_(out + product if accumulate else product)
