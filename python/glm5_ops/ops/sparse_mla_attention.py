"""sparse_mla_attention: attention over chosen keys whose start is their value, and its deterministic gradient."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indices import check_used_pages
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "sparse_mla_attention",
    differentiable=True,
    q="bf16[tokens, heads, qk_dim] strided",
    kv="bf16[keys, qk_dim] strided",
    indices="i32[tokens, topk]",
    topk_length="i32[tokens]?",
    sink="f32[heads]?",
    out="bf16[tokens, heads, v_dim]",
    lse="f32[tokens, heads]",
    probabilities="f32[tokens, topk]",
    d_out="bf16[tokens, heads, v_dim]",
    d_lse="f32[tokens, heads]",
    d_q="bf16[tokens, heads, qk_dim]",
    d_kv="bf16[keys, qk_dim]",
    d_sink="f32[heads]",
)

DECODE = Contract(
    "sparse_mla_decode",
    q="bf16[tokens, heads, 576] strided",
    byte_cache="u8[pages, 64, 656]",
    bf16_cache="bf16[pages, 64, 576]",
    indices="i32[tokens, topk]",
    block_table="i32[sequences, max_pages] strided?",
    sequences="i32[tokens]?",
    topk_length="i32[tokens]?",
    sink="f32[heads]?",
    out="bf16[tokens, heads, 512]",
    lse="f32[tokens, heads]",
)
SCHEDULES = ("exact", "fast")


def _outputs(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    scale: float,
    v_dim: int = 512,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
    probabilities: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = CONTRACT.check(q=q, kv=kv, indices=indices, topk_length=topk_length, sink=sink)
    CONTRACT.require(abs(scale) < float("inf"), "scale", "a finite number", scale)
    CONTRACT.require(1 <= v_dim <= q.shape[2], "v_dim", f"from 1 to qk_dim, which is {q.shape[2]}", v_dim)
    lengths["v_dim"] = v_dim
    wanted = lengths if probabilities else lengths | {"tokens": 0}
    out, lse = (CONTRACT.empty(name, lengths, like=q) for name in ("out", "lse"))
    return out, lse, CONTRACT.empty("probabilities", wanted, like=q)


@op(fake=_outputs)
def sparse_mla_attention(
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    scale: float,
    v_dim: int = 512,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
    probabilities: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``out[t, h] = sum_j exp(s_j - lse[t, h]) * kv[key_j, :v_dim]`` over the keys that ``indices[t]`` names.

    ``s_j = scale * (q[t, h] . kv[key_j])`` and ``lse`` is the natural logarithm of ``sum_j exp(s_j)``. An index that is
    no key (negative, or as great as the number of keys) is absent wherever it stands, and is never read; a key that
    stands in a row several times counts as often. A token without a key has out 0 and lse -inf. NaN in a key spreads to
    the tokens that name it and no further.

    The bits of a token and head depend on its query and the present keys in their order alone: not on the batch, the
    other heads, topk, where absent indices stand, nor the number of threads; on CPU not on the instruction set.

    Differentiable in q, kv and sink, through out and lse; deterministic.

    Args:
        q: queries; in the absorbed form of multi-head latent attention 512 latent and 64 rotated dims.
        kv: keys, whose first ``v_dim`` columns are the values.
        indices: i32[tokens, topk], as ``topk_select`` gives them.
        scale: of the scores.
        v_dim: columns of a value.
        topk_length: i32[tokens]; places of a row from there on are absent too.
        sink: f32[heads]; out is multiplied by ``exp(lse) / (exp(lse) + exp(sink))``. lse does not contain it.
        probabilities: whether to return the sums over heads of the softmax.

    Returns:
        out; lse; probabilities, ``sum_h exp(s_j - lse[t, h])`` at the place j, before the sink, 0 at absent places and
        with no gradient (the indexer's target); 0 rows unless asked for.
    """
    out, lse, sums = _outputs(q, kv, indices, scale, v_dim, topk_length, sink, probabilities)
    sizes = (*q.shape[1:], v_dim, indices.shape[1])
    workspace = workspace_of(q, lambda: _native.sparse_mla_attention_workspace_bytes(*sizes))
    _native.sparse_mla_attention(q, kv, indices, scale, topk_length, sink, out, lse, sums, workspace, stream_of(q))
    return out, lse, sums


def _outputs_bwd(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    given = {"q": q, "kv": kv, "indices": indices, "out": out, "lse": lse, "d_out": d_out, "d_lse": d_lse}
    lengths = CONTRACT.check(**given, topk_length=topk_length, sink=sink)
    CONTRACT.require(out.shape[2] <= q.shape[2], "out", f"no wider than qk_dim, which is {q.shape[2]}", out)
    d_q, d_kv = (CONTRACT.empty(name, lengths, like=q) for name in ("d_q", "d_kv"))
    return d_q, d_kv, CONTRACT.empty("d_sink", lengths if sink is not None else {"heads": 0}, like=q)


@op(fake=_outputs_bwd)
def sparse_mla_attention_bwd(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    kv: Tensor,
    indices: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of ``sparse_mla_attention``, recomputed from its lse.

    With ``P = exp(s - lse)`` and ``factor = exp(lse) / (exp(lse) + exp(sink))``: ``d_q = ds k`` and ``d_kv = ds^T q +
    [factor * P^T d_out | 0]``, where ``ds = scale * P * (factor * (d_out . v - out . d_out) + d_lse)``. Sums run in
    f32, in an order that the indices alone fix: for a key by token and place. The same bits from every run, number of
    threads and, on CPU, instruction set.

    Args:
        d_out, d_lse: the gradients of out and lse.
        q, kv, indices, scale, topk_length, sink: as for ``sparse_mla_attention``.
        out, lse: what it gave; ``v_dim`` is out's.

    Returns:
        d_q and d_kv (bf16), d_sink (f32; empty without a sink).
    """
    given = (d_out, d_lse, q, kv, indices, out, lse, scale, topk_length, sink)
    gradients = _outputs_bwd(*given)
    sizes = (*q.shape, out.shape[2], indices.shape[1], kv.shape[0])
    workspace = workspace_of(
        q,
        lambda: _native.sparse_mla_attention_bwd_workspace_bytes(*sizes),
        lambda: _native.sparse_mla_attention_bwd_cuda_workspace_bytes(*sizes),
    )
    _native.sparse_mla_attention_bwd(*given, *gradients, workspace, stream_of(q))
    return gradients


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q, kv, indices, ctx.scale, _, topk_length, sink, _ = inputs
    out, lse, probabilities = output
    ctx.mark_non_differentiable(probabilities)
    ctx.save_for_backward(q, kv, indices, out, lse, topk_length, sink)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor, d_lse: Tensor, _: Tensor) -> tuple:
    q, kv, indices, out, lse, topk_length, sink = ctx.saved_tensors
    gradients = sparse_mla_attention_bwd(
        d_out.contiguous(), d_lse.contiguous(), q, kv, indices, out, lse, ctx.scale, topk_length, sink
    )
    d_q, d_kv, d_sink = gradients
    return d_q, d_kv, None, None, None, None, None if sink is None else d_sink, None


differentiable(sparse_mla_attention, save=_save, backward=_backward)


def _outputs_decode(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    block_table: Tensor | None = None,
    sequences: Tensor | None = None,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
    schedule: str = "exact",
    check_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    line = "byte_cache" if cache.element_size() == 1 else "bf16_cache"
    given = {"indices": indices, "block_table": block_table, "sequences": sequences}
    lengths = DECODE.check(q=q, **{line: cache}, **given, topk_length=topk_length, sink=sink)
    DECODE.require(abs(scale) < float("inf"), "scale", "a finite number", scale)
    DECODE.require(schedule in SCHEDULES, "schedule", "one of exact, fast", schedule)
    together = (block_table is None) == (sequences is None)
    DECODE.require(together, "sequences", "given with block_table, and only then", sequences)
    return DECODE.empty("out", lengths, like=q), DECODE.empty("lse", lengths, like=q)


@op(fake=_outputs_decode)
def sparse_mla_decode(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    block_table: Tensor | None = None,
    sequences: Tensor | None = None,
    topk_length: Tensor | None = None,
    sink: Tensor | None = None,
    schedule: str = "exact",
    check_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """``sparse_mla_attention`` over the rows of a paged latent cache, for any number of query tokens per sequence.

    A token has the same bits alone or in any batch, with any schedule; the two schedules' bits differ. No gradient.

    ``exact``: the bits of ``sparse_mla_attention`` over the rows that ``mla_cache_gather`` reads from the cache, in the
    order of the indices, so that a decoded token has the bits of its row in a prefill over the same values.

    ``fast``: keys with the precision of the cache, e4m3 times its scale without a rounding to bf16; the places of a row
    in tiles of 64, merged in one order, so that the tiles of few tokens are spread over the machine. Bits depend on
    where absent indices stand. On AMX machines AVX-512 serves it.

    Args:
        q: queries in the absorbed form: 512 latent dims, then 64 rotated ones.
        cache: bf16[pages, 64, 576] or u8[pages, 64, 656], as ``mla_cache_append`` fills it.
        indices: with a block table positions of the token's sequence, as ``topk_select`` gives them: position s lies in
            page ``block_table[sequence, s / 64]``, at s % 64. Without one slots of the cache, page * 64 + row. Negative
            ones, and those beyond the table or the cache, are absent wherever they stand.
        scale: of the scores.
        block_table: the pages of every sequence; entries that no index uses may be anything.
        sequences: of every token, its row of ``block_table``.
        topk_length, sink: as for ``sparse_mla_attention``.
        schedule: ``exact`` or ``fast``, see above.
        check_indices: look at sequences and the used entries of block_table first, also on a GPU (which waits for it),
            and refuse wrong ones in a sentence. CPUs always do; on a GPU without it keys of pages that do not exist are
            absent.

    Returns:
        out, bf16[tokens, heads, 512]; lse, f32[tokens, heads].
    """
    out, lse = _outputs_decode(q, cache, indices, scale, block_table, sequences, topk_length, sink, schedule)
    if check_indices and block_table is not None:
        check_used_pages("sparse_mla_decode", indices, topk_length, block_table, sequences, cache.shape[0])
    byte_cache, bf16_cache = (cache, None) if cache.element_size() == 1 else (None, cache)
    fast, tokens, heads, topk = schedule == "fast", *q.shape[:2], indices.shape[1]
    if fast:
        workspace = workspace_of(
            q,
            lambda: _native.sparse_mla_decode_fast_workspace_bytes(tokens, heads, topk),
            lambda: _native.sparse_mla_decode_fast_cuda_workspace_bytes(tokens, heads, topk),
        )
    else:
        is_bytes = byte_cache is not None
        workspace = workspace_of(q, lambda: _native.sparse_mla_decode_workspace_bytes(heads, topk, is_bytes))
    _native.sparse_mla_decode(
        q, byte_cache, bf16_cache, indices, scale, block_table, sequences, topk_length, sink, out, lse, workspace, fast,
        stream_of(q),
    )  # fmt: skip
    return out, lse
