"""sparse_mla_decode, both schedules, beside torch: the chosen rows gathered, decoded and multiplied, in f32."""

import torch
from torch import Tensor

from glm5_ops.workloads.sparse_mla_attention import GLM5_DECODE, SparseMlaDecodeCase


def gathered_in_f32(
    q: Tensor,
    cache: Tensor,
    indices: Tensor,
    scale: float,
    block_table: Tensor,
    sequences: Tensor,
    schedule: str = "exact",
) -> tuple[Tensor, Tensor]:
    """out and lse, of cases that name a key at every place."""
    pages = block_table[sequences.long()].gather(1, (indices // 64).long())
    rows = cache.flatten(0, 1)[pages.long() * 64 + indices % 64]  # [tokens, topk, bytes or dims]
    if cache.dtype == torch.uint8:
        values = rows[..., :512].contiguous().view(torch.float8_e4m3fn).float().unflatten(2, (4, 128))
        latent = (values * rows[..., 512:528].contiguous().view(torch.float32)[..., None]).flatten(2)
        keys = torch.cat((latent, rows[..., 528:].contiguous().view(torch.bfloat16).float()), dim=2)
    else:
        keys = rows.float()
    scores = scale * torch.bmm(q.float(), keys.mT)
    lse = scores.logsumexp(2)
    return torch.bmm((scores - lse[..., None]).exp(), keys[..., :512]).to(q.dtype), lse


CASES = GLM5_DECODE
QUICK = tuple(SparseMlaDecodeCase(1, 4096, 1024, fill="full", schedule=s) for s in ("exact", "fast"))
BASELINES = {"torch gather + bmm f32": gathered_in_f32}
