"""fp8_gemm beside torch's bf16 matmul of the same shape, and beside torch's dequantisation followed by that matmul."""

from collections.abc import Callable

import torch
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops import reference
from glm5_ops.workloads.fp8_gemm import GLM5, Fp8GemmCase


def _dequantised(values: Tensor, scales: Tensor) -> Tensor:
    group = "1x128" if scales.shape[0] == values.shape[0] else "128x128"
    return reference.dequantize_fp8(values, scales, group, torch.bfloat16)


def bf16_matmul(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out_dtype: torch.dtype
) -> Callable[[], Tensor]:
    """Both operands are in bf16 beforehand: twice the memory of FP8, and no work left but the product."""
    a_bf16, b_bf16 = _dequantised(a, a_scales), _dequantised(b, b_scales)
    return lambda: (a_bf16 @ b_bf16.t()).to(out_dtype)


def dequantised_matmul(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, out_dtype: torch.dtype
) -> Callable[[], Tensor]:
    """The weights stay in FP8 and are dequantised for every product."""
    a_bf16 = _dequantised(a, a_scales)
    return lambda: (a_bf16 @ _dequantised(b, b_scales).t()).to(out_dtype)


CASES = (Fp8GemmCase(1, 1, 32), *GLM5)
QUICK = (Fp8GemmCase(1, 1, 32), Fp8GemmCase(16, 2624, 6144), Fp8GemmCase(256, 1024, 2048))
BASELINES = {"torch bf16": Prepared(bf16_matmul), "torch dequantised": Prepared(dequantised_matmul)}
