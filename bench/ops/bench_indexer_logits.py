"""indexer_logits beside the same formula in torch, and beside matrix products with as many operations.

Those in bf16 are left out where they would take minutes: torch has no fast ones for AVX2.
"""

from collections.abc import Callable

import torch
from glm5_ops.bench.machine import bf16_would_take_minutes
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops import reference
from glm5_ops.workloads.indexer_logits import GLM5, IndexerLogitsCase


def _matmul(dtype: torch.dtype) -> Prepared:
    """q of all tokens and heads against so many keys that the operations are those of the windows."""

    def prepare(
        q: Tensor, k: Tensor, weights: Tensor, windows: Tensor, k_scales: Tensor | None = None
    ) -> Callable | None:
        tokens, heads, dim = q.shape
        keys = int((windows[:, 1] - windows[:, 0]).double().mean().ceil()) if tokens else 0
        if dtype == torch.bfloat16 and bf16_would_take_minutes(2 * q.numel() * keys, q.device):
            return None
        rows, columns = q.to(dtype).reshape(tokens * heads, dim), k[:keys].to(dtype).T
        out = torch.empty(min(tokens * heads, 4096), keys, dtype=dtype, device=q.device)

        def products() -> None:
            for part in rows.split(4096):
                torch.mm(part, columns, out=out[: part.shape[0]])

        return products

    return Prepared(prepare)


CASES = (IndexerLogitsCase(1, 128), IndexerLogitsCase(256, 4096), *GLM5)
QUICK = (IndexerLogitsCase(1, 128), IndexerLogitsCase(256, 1024), IndexerLogitsCase(256, 1024, dtype="bf16"))
BASELINES = {
    "torch": reference.indexer_logits,
    "bf16 matmul": _matmul(torch.bfloat16),
    "f32 matmul": _matmul(torch.float32),
}
