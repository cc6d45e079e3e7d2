"""indexer_logits_at: the indexer's scores at given keys, and the gradient that trains it."""

import torch
from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indexer import check_dense, empty_gradients
from glm5_ops.ops._op import differentiable, op, stream_of, workspace_of

CONTRACT = Contract(
    "indexer_logits_at",
    differentiable=True,
    q="e4m3|bf16[tokens, heads, dim] strided",
    k="e4m3|bf16[keys, dim] strided",
    weights="f32[tokens, heads] strided",
    indices="i32[tokens, topk]",
    k_scales="f32[keys] any?",
    out="f32[tokens, topk]",
)
BWD = Contract(
    "indexer_logits_at_bwd",
    d_out="f32[tokens, topk]",
    q="e4m3|bf16[tokens, heads, dim] strided",
    k="e4m3|bf16[keys, dim] strided",
    weights="f32[tokens, heads] strided",
    indices="i32[tokens, topk]",
    k_scales="f32[keys] any?",
    d_q="bf16[tokens, heads, dim]",
    d_k="bf16[keys, dim]",
    d_weights="f32[tokens, heads]",
)


def _outputs(q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None) -> Tensor:
    lengths = check_dense(CONTRACT, q=q, k=k, weights=weights, indices=indices, k_scales=k_scales)
    return CONTRACT.empty("out", lengths, like=q)


@op(fake=_outputs)
def indexer_logits_at(q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None) -> Tensor:
    """``out[t, j] = k_scales[s] * sum_h weights[t, h] * relu(q[t, h] . k[s])`` for the key ``s = indices[t, j]``.

    The same bits as ``indexer_logits`` gives for that token and key. -inf where an index is no key: negative, or as
    great as the number of keys; such an index is never an address. Indices may repeat and stand in any order.

    Differentiable: with bf16 in q, k and weights, with e4m3 in weights; deterministic, in an order that the indices
    alone fix. relu'(0) = 0. This is what trains the indexer in the sparse stage (section 2.1.1 of the DeepSeek-V3.2
    report): the selected keys only, no tokens x keys matrix.

    Args:
        q: queries, e4m3 or bf16.
        k: keys, of q's type.
        weights: of the heads, with the scales multiplied in, as for ``indexer_logits``.
        indices: i32[tokens, topk], as ``topk_select`` gives them.
        k_scales: with e4m3, and only then: the scale of every key.

    Returns:
        out, f32[tokens, topk].
    """
    out = _outputs(q, k, weights, indices, k_scales)
    workspace = workspace_of(q, lambda: _native.indexer_logits_at_workspace_bytes(q.shape[1], q.shape[2]))
    _native.indexer_logits_at(q, k, weights, indices, k_scales, out, workspace, stream_of(q))
    return out


def _outputs_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = check_dense(BWD, q=q, k=k, weights=weights, indices=indices, k_scales=k_scales, d_out=d_out)
    return empty_gradients(BWD, lengths, like=q, k_scales=k_scales)


@op(fake=_outputs_bwd)
def indexer_logits_at_bwd(
    d_out: Tensor, q: Tensor, k: Tensor, weights: Tensor, indices: Tensor, k_scales: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of ``indexer_logits_at`` for ``d_out``, the gradient of its output.

    What stands in ``d_out`` beside an absent key does not count. Sums have an order, or are exact, so that the indices
    alone fix their bits.

    Args:
        d_out: f32[tokens, topk].
        q, k, weights, indices, k_scales: as for ``indexer_logits_at``.

    Returns:
        d_q (bf16, as q), d_k (bf16, as k), d_weights (f32, as weights). With e4m3 the first two are empty.
    """
    d_q, d_k, d_weights = _outputs_bwd(d_out, q, k, weights, indices, k_scales)
    sizes = (*indices.shape, k.shape[0], *q.shape[1:])
    workspace = workspace_of(
        q,
        lambda: _native.indexer_logits_at_bwd_workspace_bytes(*sizes),
        lambda: _native.indexer_logits_at_bwd_cuda_workspace_bytes(*sizes),
    )
    _native.indexer_logits_at_bwd(d_out, q, k, weights, indices, k_scales, d_q, d_k, d_weights, workspace, stream_of(q))
    return d_q, d_k, d_weights


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    CONTRACT.require(not ctx.needs_input_grad[4], "k_scales", "a tensor that needs no grad", inputs[4])
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor) -> tuple:
    saved = ctx.saved_tensors
    d_q, d_k, d_weights = indexer_logits_at_bwd(d_out.contiguous(), *saved)
    is_e4m3 = saved[0].dtype == torch.float8_e4m3fn
    return (None, None, d_weights, None, None) if is_e4m3 else (d_q, d_k, d_weights, None, None)


differentiable(indexer_logits_at, save=_save, backward=_backward)
