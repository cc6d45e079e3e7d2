"""grouped_gemm beside a loop of torch's matmul over the experts, FP8 weights dequantised for every product."""

from collections.abc import Callable
from itertools import pairwise

import torch
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops import reference
from glm5_ops.workloads.grouped_gemm import GLM5, GroupedGemmCase


def torch_loop(
    rows: Tensor,
    w: Tensor,
    offsets: Tensor,
    out_dtype: torch.dtype,
    row_scales: Tensor | None = None,
    w_scales: Tensor | None = None,
) -> Callable[[], Tensor]:
    """The rows are in bf16 beforehand; FP8 weights are dequantised in every call, as they do not fit otherwise."""
    bounds = offsets.tolist()
    out = torch.zeros(len(rows), w.shape[1], dtype=out_dtype, device=rows.device)
    if row_scales is not None:
        rows = reference.dequantize_fp8(rows, row_scales, "1x128", torch.bfloat16)

    def call() -> Tensor:
        for e, (begin, end) in enumerate(pairwise(bounds)):
            if begin == end:
                continue
            one = w[e]
            if w_scales is not None:
                one = reference.dequantize_fp8(one, w_scales[e], "128x128", torch.bfloat16)
            out[begin:end] = rows[begin:end] @ one.t()
        return out

    return call


_QUICK = tuple(GroupedGemmCase(8, rows, 512, 1024, kind) for rows in (8, 128) for kind in ("bf16", "fp8", "w8a16"))
CASES = (GroupedGemmCase(1, 1, 1, 32), *GLM5, *(GroupedGemmCase(8, 8 * m, 4096, 6144, "w8a16") for m in (1, 16, 64)))
QUICK = (GroupedGemmCase(1, 1, 1, 32), *_QUICK)
BASELINES = {"torch loop": Prepared(torch_loop)}
