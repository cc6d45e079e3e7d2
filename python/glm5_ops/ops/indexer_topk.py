"""indexer_topk: the keys that the indexer chooses for each token; their scores never exist as a matrix."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indexer import bytes_of, check_dense, check_paged
from glm5_ops.ops._indices import PAGE, check_block_table, check_windows
from glm5_ops.ops._op import op, stream_of, workspace_of

CONTRACT = Contract(
    "indexer_topk",
    q="e4m3|bf16[tokens, heads, dim] strided",
    k="e4m3|bf16[keys, dim] strided",
    weights="f32[tokens, heads] strided",
    windows="i32[tokens, 2]",
    k_scales="f32[keys] any?",
    indices="i32[tokens, topk]",
    margins="f32[tokens]",
    fingerprints="i64[tokens]",
)
PAGED = Contract(
    "indexer_topk_paged",
    q="e4m3|bf16[tokens, heads, dim] strided",
    weights="f32[tokens, heads] strided",
    e4m3_cache="u8[pages, page_bytes] strided",
    bf16_cache="bf16[pages, 64, dim] strided",
    block_table="i32[sequences, max_pages] strided",
    sequences="i32[tokens]",
    windows="i32[tokens, 2]",
    indices="i32[tokens, topk]",
    margins="f32[tokens]",
    fingerprints="i64[tokens]",
)


def _selection(
    contract: Contract, tokens: int, topk: int, margins: bool, fingerprints: bool, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    contract.require(1 <= topk < 2**31, "topk", "from 1 to 2147483647", topk)
    return (
        contract.empty("indices", {"tokens": tokens, "topk": topk}, like=like),
        contract.empty("margins", {"tokens": tokens if margins else 0}, like=like),
        contract.empty("fingerprints", {"tokens": tokens if fingerprints else 0}, like=like),
    )


def _workspace(q: Tensor, keys: int, topk: int, margins: bool) -> Tensor:
    sizes = (q.shape[0], keys, *q.shape[1:], topk, margins)
    return workspace_of(
        q,
        lambda: _native.indexer_topk_workspace_bytes(*sizes),
        lambda: _native.indexer_topk_cuda_workspace_bytes(*sizes),
    )


def _outputs(
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
    lengths = check_dense(CONTRACT, q=q, k=k, weights=weights, windows=windows, k_scales=k_scales)
    return _selection(CONTRACT, lengths["tokens"], topk, margins, fingerprints, q)


@op(fake=_outputs)
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
    """The first ``topk`` keys of each token's window under (score descending, index ascending), in ascending order.

    The scores are those of ``indexer_logits`` and the choice that of ``topk_select``, to the bit, on every machine, in
    any batch; memory grows with tokens * topk. There is no gradient.

    Args:
        q, k, weights, windows, k_scales: as for ``indexer_logits``.
        topk: how many; 1 or more, also more than there are keys.
        margins: also return how clear the cut was.
        fingerprints: also return a hash of each chosen set.
        check_indices: look at the windows first, also on a GPU (which waits for it), and refuse wrong ones in a
            sentence. CPUs always do; a GPU without it cuts them to the keys.

    Returns:
        indices i32[tokens, topk], -1 behind the chosen; margins f32[tokens] or [0]; fingerprints i64[tokens] or [0]: as
        ``topk_select`` returns them.
    """
    outputs = _outputs(q, k, weights, windows, topk, k_scales, margins, fingerprints, check_indices)
    if check_indices:
        check_windows("indexer_topk", windows, k.shape[0])
    workspace = _workspace(q, k.shape[0], topk, margins)
    _native.indexer_topk(q, k, weights, windows, k_scales, *outputs, workspace, stream_of(q))
    return outputs


def _outputs_paged(
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
    lengths = check_paged(
        PAGED, q=q, weights=weights, cache=cache, block_table=block_table, sequences=sequences, windows=windows
    )
    return _selection(PAGED, lengths["tokens"], topk, margins, fingerprints, q)


@op(fake=_outputs_paged)
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
    """``indexer_topk`` of keys in the pages of a cache.

    Args:
        q, weights, cache, block_table, sequences, windows: as for ``indexer_logits_paged``.
        topk: how many; 1 or more, also more than there are keys.
        physical: store slots of the cache, ``block_table[sequence, s // 64] * 64 + s % 64``, instead of positions s.
            The order stays that of s.
        margins: also return how clear the cut was.
        fingerprints: also return a hash of each chosen set, of positions.
        check_indices: look at windows, sequences and block_table first, also on a GPU (which waits for it), and refuse
            wrong ones in a sentence. CPUs always do.

    Returns:
        As ``indexer_topk``.
    """
    outputs = _outputs_paged(
        q, weights, cache, block_table, sequences, windows, topk, physical, margins, fingerprints, check_indices
    )
    keys = block_table.shape[1] * PAGE
    if check_indices:
        check_windows("indexer_topk_paged", windows, keys)
        check_block_table("indexer_topk_paged", block_table, sequences, windows, keys, cache.shape[0])
    workspace = _workspace(q, keys, topk, margins)
    _native.indexer_topk_paged(
        q, weights, bytes_of(cache), block_table, sequences, windows, physical, *outputs, workspace, stream_of(q)
    )
    return outputs
