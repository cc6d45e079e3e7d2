"""indexer_logits: the scores by which the indexer chooses keys, as a matrix; dense keys or paged ones."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indexer import bytes_of, check_dense, check_paged, empty_gradients
from glm5_ops.ops._indices import PAGE, check_block_table, check_windows
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "indexer_logits",
    differentiable=True,
    q="e4m3|bf16[tokens, heads, dim] strided",
    k="e4m3|bf16[keys, dim] strided",
    weights="f32[tokens, heads] strided",
    windows="i32[tokens, 2]",
    k_scales="f32[keys] any?",
    out="f32[tokens, keys]",
)
BWD = Contract(
    "indexer_logits_bwd",
    d_out="f32[tokens, keys]",
    q="e4m3|bf16[tokens, heads, dim] strided",
    k="e4m3|bf16[keys, dim] strided",
    weights="f32[tokens, heads] strided",
    windows="i32[tokens, 2]",
    k_scales="f32[keys] any?",
    d_q="bf16[tokens, heads, dim]",
    d_k="bf16[keys, dim]",
    d_weights="f32[tokens, heads]",
)
PAGED = Contract(
    "indexer_logits_paged",
    q="e4m3|bf16[tokens, heads, dim] strided",
    weights="f32[tokens, heads] strided",
    e4m3_cache="u8[pages, page_bytes] strided",
    bf16_cache="bf16[pages, 64, dim] strided",
    block_table="i32[sequences, max_pages] strided",
    sequences="i32[tokens]",
    windows="i32[tokens, 2]",
    out="f32[tokens, positions]",
)


def _outputs(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    windows: Tensor,
    k_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    lengths = check_dense(CONTRACT, q=q, k=k, weights=weights, windows=windows, k_scales=k_scales)
    return CONTRACT.empty("out", lengths, like=q)


@op(fake=_outputs)
def indexer_logits(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    windows: Tensor,
    k_scales: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """``out[t, s] = k_scales[s] * sum_h weights[t, h] * relu(q[t, h] . k[s])`` inside the window of t, -inf outside.

    Section 2.1 of the DeepSeek-V3.2 report. A score has the same bits whatever the batch, the windows and the number of
    threads are, and the same as from every other op of the indexer; on CPU every instruction set gives the same bits.
    Keys outside a window do not touch its row, whatever they hold. An empty window gives a row of -inf. A product of
    -inf counts as NaN.

    Args:
        q: queries, e4m3 or bf16.
        k: keys, of q's type.
        weights: of the heads; the softmax scale, heads^-0.5 and, with e4m3, the scales of q are multiplied in by the
            caller.
        windows: the keys [start, end) of every token, 0 <= start <= end <= keys.
        k_scales: with e4m3, and only then: the scale of every key.
        check_indices: look at the windows first, also on a GPU (which waits for it), and refuse wrong ones in a
            sentence. CPUs always do; a GPU without it cuts them to the keys.

    Returns:
        out, f32[tokens, keys]. Differentiable in q, k and weights, with e4m3 in weights; relu' at 0 is 0. The gradients
        are deterministic and have the same bits on every CPU and for every number of threads.
    """
    out = _outputs(q, k, weights, windows, k_scales, check_indices)
    if check_indices:
        check_windows("indexer_logits", windows, k.shape[0])
    workspace = workspace_of(q, lambda: _native.indexer_logits_workspace_bytes(q.shape[1], q.shape[2]))
    _native.indexer_logits(q, k, weights, windows, k_scales, out, workspace, stream_of(q))
    return out


def _outputs_paged(
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    block_table: Tensor,
    sequences: Tensor,
    windows: Tensor,
    check_indices: bool = False,
) -> Tensor:
    lengths = check_paged(
        PAGED, q=q, weights=weights, cache=cache, block_table=block_table, sequences=sequences, windows=windows
    )
    lengths["positions"] = lengths["max_pages"] * PAGE
    return PAGED.empty("out", lengths, like=q)


@op(fake=_outputs_paged)
def indexer_logits_paged(
    q: Tensor,
    weights: Tensor,
    cache: Tensor,
    block_table: Tensor,
    sequences: Tensor,
    windows: Tensor,
    check_indices: bool = False,
) -> Tensor:
    """``indexer_logits`` of keys in the pages of a cache: position s of a sequence lies in page
    ``block_table[sequence, s / 64]``, at s % 64. The same bits as for dense keys. No gradient.

    Args:
        q, weights: as for ``indexer_logits``.
        cache: with e4m3, u8[pages, 64*(dim+4)]: 64 rows of dim values, then their 64 f32 scales, as
            ``indexer_cache_append`` stores them. With bf16, bf16[pages, 64, dim].
        block_table: the pages of every sequence; entries that no window reaches may be anything.
        sequences: of every token, its row of ``block_table``.
        windows: the positions [start, end) of every token, 0 <= start <= end <= max_pages * 64.
        check_indices: look at windows, sequences and block_table first, also on a GPU (which waits for it), and refuse
            wrong ones in a sentence. CPUs always do; a GPU without it gives -inf for keys of pages that do not exist.

    Returns:
        out, f32[tokens, max_pages * 64].
    """
    out = _outputs_paged(q, weights, cache, block_table, sequences, windows, check_indices)
    if check_indices:
        check_windows("indexer_logits_paged", windows, out.shape[1])
        check_block_table("indexer_logits_paged", block_table, sequences, windows, out.shape[1], cache.shape[0])
    workspace = workspace_of(q, lambda: _native.indexer_logits_workspace_bytes(q.shape[1], q.shape[2]))
    _native.indexer_logits_paged(
        q, weights, bytes_of(cache), block_table, sequences, windows, out, workspace, stream_of(q)
    )
    return out


def _outputs_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, windows: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = check_dense(BWD, q=q, k=k, weights=weights, windows=windows, k_scales=k_scales, d_out=d_out)
    return empty_gradients(BWD, lengths, like=q, k_scales=k_scales)


@op(fake=_outputs_bwd)
def indexer_logits_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, windows: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of ``indexer_logits`` for ``d_out``, the gradient of its output.

    What stands in ``d_out`` outside the windows does not count. Sums run in f32 in an order that the windows alone fix.
    Windows are looked at on CPUs; a GPU cuts them to the keys.

    Args:
        d_out: f32[tokens, keys].
        q, k, weights, windows, k_scales: as for ``indexer_logits``.

    Returns:
        d_q (bf16, as q), d_k (bf16, as k), d_weights (f32, as weights). With e4m3 the first two are empty.
    """
    d_q, d_k, d_weights = _outputs_bwd(d_out, q, k, weights, windows, k_scales)
    workspace = workspace_of(q, lambda: _native.indexer_logits_bwd_workspace_bytes(q.shape[1], q.shape[2]))
    _native.indexer_logits_bwd(
        d_out, q, k, weights, windows, k_scales, d_q, d_k, d_weights, workspace, stream_of(q)
    )  # fmt: skip
    return d_q, d_k, d_weights


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    q, k, weights, windows, k_scales, _ = inputs
    needs = ctx.needs_input_grad
    CONTRACT.require(q.dtype == torch.bfloat16 or not (needs[0] or needs[1]), "q", "bf16 to have a gradient", q)
    CONTRACT.require(not needs[4], "k_scales", "a tensor that needs no grad", k_scales)
    ctx.save_for_backward(q, k, weights, windows, k_scales)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor) -> tuple:
    saved = ctx.saved_tensors
    d_q, d_k, d_weights = indexer_logits_bwd(d_out.contiguous(), *saved)
    is_e4m3 = saved[0].dtype == torch.float8_e4m3fn
    return (None, None, d_weights, None, None, None) if is_e4m3 else (d_q, d_k, d_weights, None, None, None)


differentiable(indexer_logits, save=_save, backward=_backward)
