"""out[t, j] = the score of indexer_logits at key indices[t, j]; -inf where that is no key"""

import torch
from torch import Tensor


def indexer_logits_at(q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None) -> Tensor:
    wide = weights.dtype
    out = torch.full(indices.shape, float("-inf"), dtype=wide, device=q.device)
    rows = []
    for t in range(len(indices)):
        j, s = _present(indices[t], k)
        scores = weights[t] @ torch.relu(q[t].to(wide) @ k[s].to(wide).T)
        rows.append(out[t].index_put((j,), scores if k_scales is None else scores * k_scales[s]))
    return torch.stack(rows) if rows else out


def indexer_logits_at_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = weights.dtype
    d_q, d_k, d_weights = q.new_zeros(q.shape, dtype=wide), k.new_zeros(k.shape, dtype=wide), torch.zeros_like(weights)
    for t in range(len(indices)):
        j, s = _present(indices[t], k)
        g = d_out[t, j] if k_scales is None else d_out[t, j] * k_scales[s]
        queries, keys = q[t].to(wide), k[s].to(wide)
        d = queries @ keys.T  # [heads, present]
        a = torch.where(d > 0, g * weights[t, :, None], 0.0)
        d_weights[t] = torch.relu(d) @ g
        d_q[t] = a @ keys
        d_k.index_add_(0, s, a.T @ queries)
    if k_scales is not None:
        return q.new_empty(0, 0, 0, dtype=torch.bfloat16), k.new_empty(0, 0, dtype=torch.bfloat16), d_weights
    return d_q.to(q.dtype), d_k.to(k.dtype), d_weights


def _present(row: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """The places of a row that hold a key, and these keys."""
    (j,) = torch.where((row >= 0) & (row < k.shape[0]))
    return j, row[j].long()
