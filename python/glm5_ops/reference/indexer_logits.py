"""out[t, s] = k_scales[s] * sum_h weights[t, h] * relu(q[t, h] . k[s]) for s in the window of t, else -inf"""

import torch
from torch import Tensor

PAGE = 64


def indexer_logits(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    windows: Tensor,
    k_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    wide = weights.dtype
    scores = weights.new_zeros(q.shape[0], k.shape[0])
    for head in range(q.shape[1]):
        scores = scores + weights[:, head, None] * torch.relu(q[:, head].to(wide) @ k.to(wide).T)
    if k_scales is not None:
        scores = scores * k_scales
    return torch.where(_inside(windows, k), scores, float("-inf"))


def indexer_logits_paged(
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    block_table: Tensor,
    sequences: Tensor,
    windows: Tensor,
    check_indices: bool = False,
) -> Tensor:
    k, k_scales = keys_of(cache, q)
    out = weights.new_full((q.shape[0], block_table.shape[1] * PAGE), float("-inf"))
    for sequence in sequences.unique().tolist():
        own = sequences == sequence
        pages = block_table[sequence].long().clamp(0, max(cache.shape[0] - 1, 0))  # unused entries may be anything
        slots = (pages[:, None] * PAGE + torch.arange(PAGE, device=pages.device)).flatten()
        scales = None if k_scales is None else k_scales[slots]
        out[own] = indexer_logits(q[own], k[slots], weights[own], windows[own], scales)
    return out


def indexer_logits_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, windows: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    wide = weights.dtype
    g = torch.where(_inside(windows, k), d_out if k_scales is None else d_out * k_scales, 0.0)
    d_q, d_k, d_weights = q.new_zeros(q.shape, dtype=wide), k.new_zeros(k.shape, dtype=wide), torch.zeros_like(weights)
    for head in range(q.shape[1]):
        d = q[:, head].to(wide) @ k.to(wide).T
        a = torch.where(d > 0, g * weights[:, head, None], 0.0)
        d_weights[:, head] = (torch.relu(d) * g).sum(1)
        d_q[:, head] = a @ k.to(wide)
        d_k += a.T @ q[:, head].to(wide)
    if k_scales is not None:
        return q.new_empty(0, 0, 0, dtype=torch.bfloat16), k.new_empty(0, 0, dtype=torch.bfloat16), d_weights
    return d_q.to(q.dtype), d_k.to(k.dtype), d_weights


def _inside(windows: Tensor, k: Tensor) -> Tensor:
    s = torch.arange(k.shape[0], device=k.device)
    return (s >= windows[:, :1]) & (s < windows[:, 1:])


def keys_of(cache: Tensor, q: Tensor) -> tuple[Tensor, Tensor | None]:
    """The keys of all pages, [pages * 64, dim], and their scales."""
    dim = q.shape[2]
    if cache.dtype != torch.uint8:
        return cache.reshape(-1, dim), None
    values, scales = cache[:, : PAGE * dim], cache[:, PAGE * dim :]
    return values.reshape(-1, dim).view(torch.float8_e4m3fn), scales.contiguous().view(torch.float32).flatten()
