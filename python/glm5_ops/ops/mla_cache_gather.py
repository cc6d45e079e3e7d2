"""mla_cache_gather: rows of the latent cache as bf16."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops import _indices
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import op, stream_of

CONTRACT = Contract(
    "mla_cache_gather",
    byte_cache="u8[pages, 64, 656]",
    bf16_cache="bf16[pages, 64, 576]",
    cache_slots="i64[rows]",
    out="bf16[rows, 576]",
)


def _outputs(cache: Tensor, cache_slots: Tensor, check_indices: bool = False) -> Tensor:
    line = "byte_cache" if cache.element_size() == 1 else "bf16_cache"
    lengths = CONTRACT.check(**{line: cache}, cache_slots=cache_slots)
    return CONTRACT.empty("out", lengths, like=cache)


@op(fake=_outputs)
def mla_cache_gather(cache: Tensor, cache_slots: Tensor, check_indices: bool = False) -> Tensor:
    """Read rows of a latent cache back as bf16: what a prefill that reuses a cached prefix attends to.

    ``out[i] = cache[cache_slots[i]]``; from a cache of bytes the latent is ``bf16(e4m3 * scale)``, the product in f32
    and rounded once: the values that ``sparse_mla_decode`` uses, to the bit, on every machine. Without a gradient.

    Args:
        cache: bf16[pages, 64, 576] or u8[pages, 64, 656], as ``mla_cache_append`` fills it.
        cache_slots: i64[rows], page * 64 + row; -1 gives a row of zeros. Slots may repeat.
        check_indices: look at ``cache_slots`` first, at the price of a synchronisation. On the CPU they are always
            looked at; on CUDA, without this, a slot outside the cache gives zeros.

    Returns:
        bf16[rows, 576].
    """
    out = _outputs(cache, cache_slots)
    if check_indices:
        _indices.check_cache_slots("mla_cache_gather", cache_slots, cache.shape[0] * 64)
    byte_cache, bf16_cache = (cache, None) if cache.element_size() == 1 else (None, cache)
    _native.mla_cache_gather(byte_cache, bf16_cache, cache_slots, out, stream_of(out))
    return out
