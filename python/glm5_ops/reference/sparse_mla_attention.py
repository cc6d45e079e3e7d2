"""out_t,h = sum_j softmax_j(scale * q_t,h . k_j) v_j over the keys j that token t names; v_j = the start of k_j"""

import torch
from torch import Tensor


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
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    outs, lses, sums = [], [], []
    for t in range(len(indices)):
        j, s = _present(indices, kv, topk_length, t)
        keys = kv[s].to(wide)  # [present, qk_dim]
        scores = scale * (q[t].to(wide) @ keys.T)  # [heads, present]
        lse = scores.logsumexp(1)
        p = (scores - lse[:, None]).exp()
        out = p @ keys[:, :v_dim]
        outs.append(out if sink is None or not len(j) else out * torch.sigmoid(lse - sink.to(wide))[:, None])
        lses.append(lse)
        sums.append(q.new_zeros(indices.shape[1], dtype=wide).index_put((j,), p.detach().sum(0)))
    out, lse, total = (torch.stack(rows) if rows else None for rows in (outs, lses, sums))
    heads = q.shape[1]
    out = q.new_empty(0, heads, v_dim) if out is None else out.to(q.dtype)
    lse = q.new_empty(0, heads, dtype=wide) if lse is None else lse
    if not probabilities or total is None:
        total = q.new_empty(0, indices.shape[1], dtype=wide)
    return out, lse, total


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
    wide, v_dim = lse.dtype, out.shape[2]
    d_q, d_kv = q.new_zeros(q.shape, dtype=wide), kv.new_zeros(kv.shape, dtype=wide)
    d_sink = q.new_zeros(0 if sink is None else len(sink), dtype=wide)
    for t in range(len(indices)):
        j, s = _present(indices, kv, topk_length, t)
        if not len(j):
            continue
        queries, keys, d_o = q[t].to(wide), kv[s].to(wide), d_out[t].to(wide)
        factor = 1.0 if sink is None else torch.sigmoid(lse[t] - sink.to(wide))[:, None]
        p = (scale * (queries @ keys.T) - lse[t, :, None]).exp()
        delta = (out[t].to(wide) * d_o).sum(1, keepdim=True)
        d_scores = scale * p * (factor * (d_o @ keys[:, :v_dim].T - delta) + d_lse[t, :, None])
        d_q[t] = d_scores @ keys
        d_kv.index_add_(0, s, d_scores.T @ queries)
        d_kv[:, :v_dim].index_add_(0, s, (factor * p).T @ d_o)
        if sink is not None:
            d_sink -= ((1 - factor) * delta)[:, 0]
    return d_q.to(q.dtype), d_kv.to(kv.dtype), d_sink


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
    slots = indices.long()
    if block_table is not None:
        positions = block_table.shape[1] * 64
        inside = (slots >= 0) & (slots < positions)
        at = torch.where(inside, slots, 0)
        table = torch.cat((block_table.long(), block_table.new_zeros(len(block_table), 1)), dim=1)  # never empty
        pages = table[sequences.long()].gather(1, at // 64)
        slots = torch.where(inside, pages * 64 + at % 64, -1)
    if schedule == "exact":
        rows = _rows(cache, torch.float32).to(torch.bfloat16).to(q.dtype)
    else:
        rows = _rows(cache, torch.float64 if q.dtype == torch.float64 else torch.float32)
    out, lse, _ = sparse_mla_attention(q, rows, slots, scale, 512, topk_length, sink)
    return out, lse


def _rows(cache: Tensor, wide: torch.dtype) -> Tensor:
    """All slots of a latent cache; those of bytes as products in `wide`."""
    rows = cache.flatten(0, 1)
    if cache.dtype != torch.uint8:
        return rows
    values = rows[:, :512].contiguous().view(torch.float8_e4m3fn).to(wide).unflatten(1, (4, 128))
    scales = rows[:, 512:528].contiguous().view(torch.float32).to(wide)
    latent = (values * scales[:, :, None]).flatten(1)
    return torch.cat((latent, rows[:, 528:].contiguous().view(torch.bfloat16).to(wide)), dim=1)


def _present(indices: Tensor, kv: Tensor, topk_length: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
    """The places of a row that hold a key, and these keys."""
    row = indices[t] if topk_length is None else indices[t, : max(0, int(topk_length[t]))]
    (j,) = torch.where((row >= 0) & (row < kv.shape[0]))
    return j, row[j].long()
