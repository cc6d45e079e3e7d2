"""sparse_mla_attention_bwd beside autograd of the composition that gathers the chosen keys, in bf16 and in f32."""

import torch
from glm5_ops.bench.ops.bench_sparse_mla_attention import gathered
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.sparse_mla_attention import GLM5_BWD, SparseMlaAttentionBwdCase


def autograd(dtype: torch.dtype) -> Prepared:
    """The gradient alone: the forward pass is made beforehand, and its graph kept."""

    def prepare(d_out: Tensor, d_lse: Tensor, q: Tensor, kv: Tensor, indices: Tensor, scale: float, **_: object):
        leaves = [x.to(dtype).requires_grad_() for x in (q, kv)]
        results = gathered(*leaves, indices, scale, d_out.shape[2])
        given = [d_out.to(dtype), d_lse]
        return lambda: torch.autograd.grad(results, leaves, given, retain_graph=True)

    return Prepared(prepare)


CASES = GLM5_BWD
QUICK = (SparseMlaAttentionBwdCase(2, 1024, 512, fill="full"),)
BASELINES = {"torch autograd": autograd(torch.bfloat16), "torch autograd f32": autograd(torch.float32)}
