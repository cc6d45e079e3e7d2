"""gemm beside torch's matmul."""

from collections.abc import Callable

import torch
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.gemm import GLM5, GemmCase


def matmul(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: torch.matmul(a, b.mT).to(out_dtype)


CASES = (GemmCase(1, 1, 32), *GLM5)
QUICK = (GemmCase(1, 1, 32), GemmCase(16, 256, 6144, "f32", "f32"), GemmCase(256, 1024, 1024))
BASELINES = {"torch": Prepared(matmul)}
