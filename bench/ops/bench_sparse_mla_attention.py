"""sparse_mla_attention beside compositions of torch's operations: the chosen keys gathered and multiplied (in bf16, and
in f32 for processors without a fast bf16 product), and all keys under a mask.

They take a few tokens at a time, so that their copies of the keys and masks stay within some hundred megabytes.
"""

import torch
from torch import Tensor

from glm5_ops.workloads.sparse_mla_attention import GLM5, SparseMlaAttentionCase

TOKENS = 16


def gathered(q: Tensor, kv: Tensor, indices: Tensor, scale: float, v_dim: int = 512) -> tuple[Tensor, Tensor]:
    """out and lse."""
    outs = []
    for row, chosen in zip(q.split(TOKENS), indices.split(TOKENS), strict=True):
        present = (chosen >= 0) & (chosen < len(kv))
        keys = kv[torch.where(present, chosen, 0).long()]  # [tokens, topk, qk_dim]
        scores = (scale * torch.bmm(row, keys.mT)).float().masked_fill(~present[:, None], float("-inf"))
        lse = scores.logsumexp(2)
        outs.append((torch.bmm((scores - lse[..., None]).exp().to(keys.dtype), keys[..., :v_dim]), lse))
    return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))


def gathered_in_f32(q: Tensor, kv: Tensor, indices: Tensor, scale: float, v_dim: int = 512, **_: object) -> Tensor:
    out, _ = gathered(q.float(), kv.float(), indices, scale, v_dim)
    return out.to(q.dtype)


def masked(q: Tensor, kv: Tensor, indices: Tensor, scale: float, v_dim: int = 512, **_: object) -> Tensor:
    keys = kv.expand(q.shape[1], *kv.shape)
    outs = []
    for row, chosen in zip(q.split(TOKENS), indices.split(TOKENS), strict=True):
        mask = torch.zeros(len(row), len(kv) + 1, dtype=torch.bool)
        mask.scatter_(1, torch.where((chosen >= 0) & (chosen < len(kv)), chosen, len(kv)).long(), True)
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                row.transpose(0, 1)[None], keys[None], keys[None, ..., :v_dim], mask[None, None, :, :-1], scale=scale
            )
        )
    return torch.cat(outs, dim=2)


CASES = GLM5[:2]
QUICK = (SparseMlaAttentionCase(4, 2048, 1024, fill="full"),)
BASELINES = {
    "torch gather + bmm": lambda **inputs: gathered(**inputs),
    "torch gather + bmm f32": gathered_in_f32,
    "torch sdpa + mask": masked,
}
