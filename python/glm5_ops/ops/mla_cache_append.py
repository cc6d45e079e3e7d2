"""mla_cache_append: normalise, rotate, quantise and store the latent keys of MLA."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops import _indices
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import op, stream_of

CONTRACT = Contract(
    "mla_cache_append",
    kv="bf16|f32[tokens, 576] strided",
    norm_weight="bf16|f32[512]",
    positions="i32[tokens]",
    cos_sin="f32[max_positions, 32, 2]",
    cache_slots="i64[tokens]",
    byte_cache="u8[pages, 64, 656]",
    bf16_cache="bf16[pages, 64, 576]",
)


def _outputs(
    kv: Tensor,
    norm_weight: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float,
    power_of_two: bool = False,
    check_indices: bool = False,
) -> None:
    CONTRACT.check(
        kv=kv,
        norm_weight=norm_weight,
        positions=positions,
        cos_sin=cos_sin,
        cache_slots=cache_slots,
        **{"byte_cache" if cache.element_size() == 1 else "bf16_cache": cache},
    )
    CONTRACT.require(eps > 0, "eps", "above 0", eps)


@op(fake=_outputs, mutates=("cache",))
def mla_cache_append(
    kv: Tensor,
    norm_weight: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float,
    power_of_two: bool = False,
    check_indices: bool = False,
) -> None:
    """Store latent keys in a paged cache: ``cache[slot] = [RMSNorm(kv[:512]) | rope(kv[512:])]``, perhaps quantised.

    RMSNorm over the 512 values of the latent in f32, ``norm_weight * dtype(x / sqrt(mean(x^2) + eps))`` with the
    rounding to ``kv``'s type before the weight, as transformers has it; interleaved rope on the other 64 in f32, pairs
    kept in place; both rounded to bf16. A cache of bf16 stores this. A cache of bytes stores the latent as
    ``quantize_fp8(latent, "1x128", power_of_two)`` gives it, to the bit, and the rotated part as bf16. The same bits on
    every machine (MLA: DeepSeek-V2, arXiv 2405.04434, section 2.1; the 656 bytes: DeepSeek-V3.2's serving caches).

    Args:
        kv: bf16 or f32 [tokens, 576], the product ``h @ kv_a_proj.T``; rows may be strided.
        norm_weight: bf16 or f32 [512].
        positions: i32[tokens], each token's row of ``cos_sin``.
        cos_sin: f32[max_positions, 32, 2], cosine and sine of the 32 angles of a position.
        cache_slots: i64[tokens], page * 64 + row; -1 stores nothing. The slots of one call must differ.
        cache: written in place. bf16[pages, 64, 576]; or u8[pages, 64, 656], a token being 512 e4m3 bytes, 4 f32
            scales (one for 128 values) and 64 bf16.
        eps: of the RMSNorm. GLM-5 was trained with 1e-5; transformers builds this norm with 1e-6.
        power_of_two: scales are powers of two.
        check_indices: look at ``positions`` and ``cache_slots`` first, at the price of a synchronisation. On the CPU
            they are always looked at; on CUDA, without this, a slot outside the cache stores nothing and a position
            outside the table counts as the nearest one inside.
    """
    _outputs(kv, norm_weight, positions, cos_sin, cache_slots, cache, eps, power_of_two)
    if check_indices:
        _indices.check_cache_slots("mla_cache_append", cache_slots, cache.shape[0] * 64)
        _indices.check_positions("mla_cache_append", positions, cos_sin.shape[0])
    byte_cache, bf16_cache = (cache, None) if cache.element_size() == 1 else (None, cache)
    _native.mla_cache_append(
        kv, norm_weight, eps, positions, cos_sin, cache_slots, power_of_two, byte_cache, bf16_cache, stream_of(kv)
    )
