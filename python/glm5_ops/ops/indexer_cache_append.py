"""indexer_cache_append: normalise, rotate, quantise and store the indexer's keys."""

from torch import Tensor

from glm5_ops import _native
from glm5_ops.ops import _indices
from glm5_ops.ops._contract import Contract
from glm5_ops.ops._op import op, stream_of

CONTRACT = Contract(
    "indexer_cache_append",
    k="bf16|f32[tokens, 128] strided",
    norm_weight="bf16|f32[128]",
    norm_bias="bf16|f32[128]",
    positions="i32[tokens]",
    cos_sin="f32[max_positions, 32, 2]",
    cache_slots="i64[tokens]",
    byte_cache="u8[pages, 8448]",
    bf16_cache="bf16[pages, 64, 128]",
)


def _outputs(
    k: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float = 1e-6,
    hadamard: bool = False,
    power_of_two: bool = True,
    check_indices: bool = False,
) -> None:
    in_bytes = cache.dim() == 2
    CONTRACT.check(
        k=k,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        positions=positions,
        cos_sin=cos_sin,
        cache_slots=cache_slots,
        **{"byte_cache" if in_bytes else "bf16_cache": cache},
    )
    CONTRACT.require(
        norm_weight.dtype == norm_bias.dtype, "norm_bias", f"{norm_weight.dtype} as norm_weight", norm_bias
    )
    CONTRACT.require(eps > 0, "eps", "above 0", eps)


@op(fake=_outputs, mutates=("cache",))
def indexer_cache_append(
    k: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    cache_slots: Tensor,
    cache: Tensor,
    eps: float = 1e-6,
    hadamard: bool = False,
    power_of_two: bool = True,
    check_indices: bool = False,
) -> None:
    """Store index keys in a paged cache: ``cache[slot] = quantised(bf16(rope(LayerNorm(k))))``.

    LayerNorm over the 128 values, in f32; interleaved rope on the first 64, pairs kept in place; optionally a product
    with the Hadamard matrix of 128 over sqrt(128) (DeepSeek-V3.2 rotates so before FP8; GLM-5 does not); rounding to
    bf16. Then the key is stored as it is, or as ``quantize_fp8(key, "1x128", power_of_two)`` gives it, to the bit. The
    same bits on every machine (GLM-5, arXiv 2602.15763, section 2.1.1; DeepSeek-V3.2's inference code for the cache).

    Args:
        k: bf16 or f32 [tokens, 128], the product ``h @ wk.T``; rows may be strided.
        norm_weight: bf16 or f32 [128].
        norm_bias: of the same type.
        positions: i32[tokens], each token's row of ``cos_sin``.
        cos_sin: f32[max_positions, 32, 2], cosine and sine of the 32 angles of a position.
        cache_slots: i64[tokens], page * 64 + row; -1 stores nothing. The slots of one call must differ.
        cache: written in place. u8[pages, 64 * 132]: a page is 64 rows of 128 e4m3 bytes, then 64 f32 scales; or
            bf16[pages, 64, 128].
        eps: of the LayerNorm.
        hadamard: mix the values before rounding.
        power_of_two: scales are powers of two (values of UE8M0), as the peers' index caches have them.
        check_indices: look at ``positions`` and ``cache_slots`` first, at the price of a synchronisation. On the CPU
            they are always looked at; on CUDA, without this, a slot outside the cache stores nothing and a position
            outside the table counts as the nearest one inside.
    """
    _outputs(k, norm_weight, norm_bias, positions, cos_sin, cache_slots, cache, eps, hadamard, power_of_two)
    if check_indices:
        _indices.check_cache_slots("indexer_cache_append", cache_slots, cache.shape[0] * 64)
        _indices.check_positions("indexer_cache_append", positions, cos_sin.shape[0])
    byte_cache, bf16_cache = (cache, None) if cache.dim() == 2 else (None, cache)
    _native.indexer_cache_append(
        k, norm_weight, norm_bias, eps, positions, cos_sin, cache_slots, hadamard, power_of_two, byte_cache, bf16_cache,
        stream_of(k),
    )  # fmt: skip
