"""``check_indices``: what CPU doors always refuse, asked of tensors on a GPU, at the price of a synchronisation.

The sentences are those of csrc/core/windows_check.h.
"""

import torch
from torch import Tensor

from glm5_ops import _native

PAGE = 64


def check_windows(op: str, windows: Tensor, keys: int) -> None:
    """Raises ``glm5_ops.Error`` unless every row is ``[start, end)`` within 0 .. keys."""
    start, end = windows.unbind(1)
    wrong = (start < 0) | (start > end) | (end > keys)
    if bool(wrong.any()):
        t = int(wrong.nonzero()[0])
        raise _native.Error(
            f"{op}: windows must be [start, end) with 0 <= start <= end <= {keys}; "
            f"windows[{t}] is [{int(start[t])}, {int(end[t])})"
        )


def check_pages(op: str, block_table: Tensor, sequences: Tensor, windows: Tensor, pages: int) -> None:
    """Raises ``glm5_ops.Error`` unless the pages that the windows of ``sequences`` reach are pages of the cache."""
    wrong = (sequences < 0) | (sequences >= block_table.shape[0])
    if bool(wrong.any()):
        t = int(wrong.nonzero()[0])
        raise _native.Error(
            f"{op}: sequences must be rows of block_table, below {block_table.shape[0]}; "
            f"sequences[{t}] is {int(sequences[t])}"
        )
    start, end = windows.unbind(1)
    page = torch.arange(block_table.shape[1], device=block_table.device)
    reached = (page >= (start // PAGE)[:, None]) & (page * PAGE < end[:, None]) & (start < end)[:, None]
    table = block_table[sequences.long()]
    wrong = reached & ((table < 0) | (table >= pages))
    if bool(wrong.any()):
        t, p = wrong.nonzero()[0].tolist()
        raise _native.Error(
            f"{op}: block_table must have pages below {pages} wherever a window reaches; "
            f"block_table[{int(sequences[t])}, {p}] is {int(table[t, p])}"
        )
