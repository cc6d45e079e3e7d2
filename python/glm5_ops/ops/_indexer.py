"""What the indexer's ops ask of queries and keys beyond the lines of their contracts."""

import torch
from torch import Tensor

from glm5_ops.ops._contract import Contract
from glm5_ops.ops._indices import PAGE


def check_dense(contract: Contract, *, q: Tensor, k: Tensor, k_scales: Tensor | None, **more: Tensor) -> dict:
    """``contract.check``, and: keys of q's type, with scales where that is e4m3."""
    lengths = contract.check(q=q, k=k, k_scales=k_scales, **more)
    contract.require(q.dtype == k.dtype, "k", f"{q.dtype} as q is", k)
    with_scales = q.dtype == torch.float8_e4m3fn
    contract.require((k_scales is not None) == with_scales, "k_scales", "given with e4m3 and only then", k_scales)
    return lengths


def check_paged(contract: Contract, *, q: Tensor, cache: Tensor, **more: Tensor) -> dict:
    """``contract.check``, and: a cache of q's type, pages without gaps."""
    name = "e4m3_cache" if q.dtype == torch.float8_e4m3fn else "bf16_cache"
    lengths = contract.check(q=q, **{name: cache}, **more)
    if name == "e4m3_cache":
        page_bytes = PAGE * (lengths["dim"] + 4)
        expected = f"u8[pages, 64*(dim+4)], {page_bytes} bytes a page"
        contract.require(cache.shape[1] == page_bytes, "cache", expected, cache)
    else:
        contract.require(cache.stride(1) == lengths["dim"], "cache", "bf16 with row-major pages", cache)
    return lengths


def bytes_of(cache: Tensor) -> Tensor:
    """u8[pages, bytes of a page]."""
    return cache if cache.dtype == torch.uint8 else cache.flatten(1).view(torch.uint8)


def empty_gradients(
    contract: Contract, lengths: dict, *, like: Tensor, k_scales: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """d_q, d_k, d_weights; with e4m3 the first two without elements."""
    of_inputs = lengths if k_scales is None else dict.fromkeys(lengths, 0)
    d_q, d_k = (contract.empty(name, of_inputs, like=like) for name in ("d_q", "d_k"))
    return d_q, d_k, contract.empty("d_weights", lengths, like=like)
