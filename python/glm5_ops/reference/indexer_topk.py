"""topk_select of indexer_logits"""

from torch import Tensor

from glm5_ops.reference.indexer_logits import indexer_logits, indexer_logits_paged
from glm5_ops.reference.topk_select import topk_select


def indexer_topk(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    windows: Tensor,
    topk: int,
    k_scales: Tensor | None = None,
    margins: bool = False,
    fingerprints: bool = False,
    check_indices: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = indexer_logits(q, k, weights, windows, k_scales)
    return topk_select(scores, topk, windows, margins=margins, fingerprints=fingerprints)


def indexer_topk_paged(
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    block_table: Tensor,
    sequences: Tensor,
    windows: Tensor,
    topk: int,
    physical: bool = False,
    margins: bool = False,
    fingerprints: bool = False,
    check_indices: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    scores = indexer_logits_paged(q, weights, cache, block_table, sequences, windows)
    table, rows = (block_table, sequences) if physical else (None, None)
    return topk_select(scores, topk, windows, table, rows, margins, fingerprints)
