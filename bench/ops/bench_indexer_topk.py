"""indexer_topk beside what transformers' GlmMoeDsaIndexer does eagerly, and beside the same in chunks of tokens.

Both get q and k in bf16, and the causal part is not cut out of them, as there. Products in bf16 are left out where they
would take minutes: torch has no fast ones for AVX2.
"""

from collections.abc import Callable

import torch
from glm5_ops.bench.machine import bf16_would_take_minutes
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.indexer_topk import GLM5, IndexerTopkCase


def _eager(q: Tensor, k: Tensor, weights: Tensor, mask: Tensor, topk: int) -> Tensor:
    """The scoring and the choice of GlmMoeDsaIndexer.forward in transformers 5.18, line by line."""
    scores = torch.relu(torch.matmul(q.float(), k.transpose(-1, -2).float().unsqueeze(0)))
    index_scores = torch.matmul(weights.unsqueeze(-2), scores).squeeze(-2)
    index_scores = index_scores.masked_fill(~mask, float("-inf"))
    return index_scores.topk(min(topk, k.shape[0]), dim=-1).indices.to(torch.int32)


def _chunked(q: Tensor, k: Tensor, weights: Tensor, mask: Tensor, topk: int, rows: int, dtype: torch.dtype) -> list:
    """The same for so many tokens at a time, as one matrix product; scores of bf16 where that is the dtype."""
    chosen = []
    for at in range(0, q.shape[0], rows):
        part = q[at : at + rows].to(dtype)
        scores = torch.relu(torch.mm(part.flatten(0, 1), k.to(dtype).T)).view(part.shape[0], part.shape[1], -1)
        index_scores = torch.bmm(weights[at : at + rows, None].to(dtype), scores)[:, 0].float()
        index_scores = index_scores.masked_fill(~mask[at : at + rows], float("-inf"))
        chosen.append(index_scores.topk(min(topk, k.shape[0]), dim=-1).indices.int())
    return chosen


def _prepared(function: Callable, **more: object) -> Prepared:
    def prepare(
        q: Tensor,
        k: Tensor,
        weights: Tensor,
        windows: Tensor,
        topk: int,
        k_scales: Tensor | None = None,
        margins: bool = False,
        fingerprints: bool = False,
    ) -> Callable | None:
        if more.get("dtype") == torch.bfloat16 and bf16_would_take_minutes(2 * q.numel() * k.shape[0], q.device):
            return None
        s = torch.arange(k.shape[0], device=k.device)
        mask = (s >= windows[:, :1]) & (s < windows[:, 1:])
        k = k.float() if k_scales is None else k.float() * k_scales[:, None]
        operands = q.bfloat16(), k.bfloat16(), weights, mask, topk
        return lambda: function(*operands, **more)

    return Prepared(prepare)


CASES = (IndexerTopkCase(1, 128, topk=64), IndexerTopkCase(256, 4096, optional=False), *GLM5)
QUICK = (IndexerTopkCase(1, 128, topk=64), IndexerTopkCase(128, 1024, topk=256))
BASELINES = {
    "eager": _prepared(_eager),
    "chunked f32": _prepared(_chunked, rows=64, dtype=torch.float32),
    "chunked bf16": _prepared(_chunked, rows=64, dtype=torch.bfloat16),
}
