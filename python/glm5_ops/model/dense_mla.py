"""Attention over all keys of a window, by the kernels and with the bits of attention over chosen ones.

For contexts no longer than topk, where the indexer would choose every key, and for the indexer's dense warm-up
(DeepSeek-V3.2 report, section 2.1.1), whose target is the attention over all keys. The main model is frozen there.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

import glm5_ops


def window_indices(windows: Tensor, keys: int) -> Tensor:
    """Every key of each token's window [start, end) at the place of its number, -1 elsewhere: i32[tokens, keys]."""
    numbers = torch.arange(keys, dtype=torch.int32, device=windows.device)
    inside = (numbers >= windows[:, :1]) & (numbers < windows[:, 1:])
    return torch.where(inside, numbers, -1)


def dense_mla_attention(
    q: Tensor,
    kv: Tensor,
    windows: Tensor,
    scale: float,
    v_dim: int = 512,
    sink: Tensor | None = None,
    *,
    block: int = 256,
    ops: ModuleType = glm5_ops,
) -> tuple[Tensor, Tensor]:
    """out and lse of ``sparse_mla_attention`` with all keys of the windows, ``block`` tokens at a time.

    No tokens x keys matrix exists, except while gradients are recorded, which keeps the indices of all blocks (4 bytes
    for a token and key); a key's gradient is then the sum of one bf16 number per block, so a block that holds all
    tokens gives the gradient of ``sparse_mla_attention`` to the bit.

    Args:
        q, kv, scale, v_dim, sink: as for ``sparse_mla_attention``.
        windows: i32[tokens, 2], ``[start, end)`` of each token's keys; a causal token ``t`` has ``[0, t + 1)``.
        block: tokens at a time.
        ops: :mod:`glm5_ops`, or its reference.

    Raises:
        ValueError: windows of another shape; and what ``sparse_mla_attention`` refuses.
    """
    _check("dense_mla_attention", q, windows, block)
    parts = []
    for begin in range(0, max(1, q.shape[0]), block):
        tokens = slice(begin, begin + block)
        indices = window_indices(windows[tokens], kv.shape[0])
        parts.append(ops.sparse_mla_attention(q[tokens], kv, indices, scale, v_dim, None, sink)[:2])
    out, lse = zip(*parts, strict=True)
    return torch.cat(out), torch.cat(lse)


def dense_targets(
    q: Tensor, kv: Tensor, windows: Tensor, scale: float, v_dim: int = 512, *, ops: ModuleType = glm5_ops
) -> Callable[[int, int], Tensor]:
    """What ``blockwise_indexer_loss`` takes as ``target_of``: the softmax over all keys, summed over heads.

    Args and errors as for ``dense_mla_attention``. Nothing is kept: the targets of a block are computed when asked for.
    """
    _check("dense_targets", q, windows, 1)

    @torch.no_grad()
    def target_of(begin: int, end: int) -> Tensor:
        indices = window_indices(windows[begin:end], kv.shape[0])
        return ops.sparse_mla_attention(q[begin:end], kv, indices, scale, v_dim, probabilities=True)[2]

    return target_of


def _check(name: str, q: Tensor, windows: Tensor, block: int) -> None:
    if windows.shape != (q.shape[0], 2):
        raise ValueError(f"{name}: windows must be [tokens, 2] where tokens is {q.shape[0]}; got {list(windows.shape)}")
    if block < 1:
        raise ValueError(f"{name}: block must be at least 1; got {block}")
