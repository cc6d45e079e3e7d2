"""topk_select: the best keys of each row, the same set for any content on every machine."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indices import check_block_table, check_windows
from glm5_ops.ops._op import op, stream_of, workspace_of

CONTRACT = Contract(
    "topk_select",
    scores="f32[rows, keys] strided",
    windows="i32[rows, 2] any?",
    block_table="i32[sequences, max_pages] strided?",
    sequences="i32[rows] any?",
    indices="i32[rows, topk]",
    margins="f32[rows]",
    fingerprints="i64[rows]",
)


def _outputs(
    scores: Tensor,
    topk: int,
    windows: Tensor | None = None,
    block_table: Tensor | None = None,
    sequences: Tensor | None = None,
    margins: bool = False,
    fingerprints: bool = False,
    check_indices: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = CONTRACT.check(scores=scores, windows=windows, block_table=block_table, sequences=sequences)
    CONTRACT.require(1 <= topk < 2**31, "topk", "from 1 to 2147483647", topk)
    CONTRACT.require(
        (block_table is None) == (sequences is None), "sequences", "given together with block_table", sequences
    )
    rows = lengths["rows"]
    return (
        CONTRACT.empty("indices", {"rows": rows, "topk": topk}, like=scores),
        CONTRACT.empty("margins", {"rows": rows if margins else 0}, like=scores),
        CONTRACT.empty("fingerprints", {"rows": rows if fingerprints else 0}, like=scores),
    )


@op(fake=_outputs)
def topk_select(
    scores: Tensor,
    topk: int,
    windows: Tensor | None = None,
    block_table: Tensor | None = None,
    sequences: Tensor | None = None,
    margins: bool = False,
    fingerprints: bool = False,
    check_indices: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``topk`` keys of each row's window under (score descending, index ascending), in ascending order.

    ``min(topk, window length)`` keys are always chosen. The order is total: -0 equals +0, -inf comes after every finite
    score, NaN after -inf; so the chosen set is the same on every machine, in any batch, however many keys are equal.
    There is no gradient.

    Args:
        scores: f32[rows, keys]; rows may be strided. What lies outside a row's window is not looked at.
        topk: how many; 1 or more, also more than there are keys.
        windows: i32[rows, 2], the range [start, end) of keys each row chooses from; all keys where not given.
        block_table: i32[sequences, max_pages], to store slots of a paged cache: key ``s`` is stored as
            ``block_table[sequence, s // 64] * 64 + s % 64``. The order stays that of ``s``.
        sequences: i32[rows], each row's row of ``block_table``; given with it.
        margins: also return how clear the cut was.
        fingerprints: also return a hash of each chosen set.
        check_indices: look at windows, sequences and table first, and refuse what is out of range; on a GPU that waits
            for the device. On the CPU this is always done. Unchecked, a GPU cuts windows to the keys there are.

    Returns:
        indices i32[rows, topk], -1 where there are no more keys; margins f32[rows] or [0]: worst chosen score minus
        best score left out, 0 where the two are equal, +inf where nothing is left out or only NaN; fingerprints
        i64[rows] or [0]: equal where the sets of chosen keys (not slots) are equal, and different, but for one chance
        in 2^64, where they differ.
    """
    outputs = _outputs(scores, topk, windows, block_table, sequences, margins, fingerprints, check_indices)
    rows, keys = scores.shape
    if check_indices and windows is not None:
        check_windows("topk_select", windows, keys)
    if check_indices and block_table is not None:
        check_block_table("topk_select", block_table, sequences, windows, keys)
    workspace = workspace_of(scores, lambda: _native.topk_select_workspace_bytes(rows, keys, topk, margins))
    _native.topk_select(scores, windows, block_table, sequences, *outputs, workspace, stream_of(scores))
    return outputs
