"""Deterministic kernels for GLM-5-style models, on Hopper and on CPUs.

Every op has a reference of the same name in :mod:`glm5_ops.reference`. The ops, and torch with them, are loaded at
their first use, so that `glm5-ops doctor` starts however broken an installation is; ``import glm5_ops.ops`` loads them
at once, for callers of ``torch.ops.glm5_ops``.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glm5_ops._native import Error
    from glm5_ops.ops import (
        dequantize_fp8,
        fp8_gemm,
        fp8_gemm_into,
        gemm,
        gemm_into,
        grouped_gemm,
        grouped_gemm_into,
        grouped_gemm_masked,
        grouped_gemm_wgrad,
        grouped_gemm_wgrad_into,
        indexer_cache_append,
        indexer_logits,
        indexer_logits_at,
        indexer_logits_at_bwd,
        indexer_logits_bwd,
        indexer_logits_paged,
        indexer_topk,
        indexer_topk_paged,
        mla_cache_append,
        mla_cache_gather,
        moe_combine,
        moe_combine_bwd,
        moe_dispatch,
        moe_route,
        moe_route_bwd,
        moe_sort,
        quantize_fp8,
        sparse_mla_attention,
        sparse_mla_attention_bwd,
        sparse_mla_decode,
        swiglu,
        swiglu_bwd,
        swiglu_fp8,
        topk_select,
    )

__version__ = "0.1.0"
__all__ = [
    "Error",
    "dequantize_fp8",
    "fp8_gemm",
    "fp8_gemm_into",
    "gemm",
    "gemm_into",
    "grouped_gemm",
    "grouped_gemm_into",
    "grouped_gemm_masked",
    "grouped_gemm_wgrad",
    "grouped_gemm_wgrad_into",
    "indexer_cache_append",
    "indexer_logits",
    "indexer_logits_at",
    "indexer_logits_at_bwd",
    "indexer_logits_bwd",
    "indexer_logits_paged",
    "indexer_topk",
    "indexer_topk_paged",
    "mla_cache_append",
    "mla_cache_gather",
    "moe_combine",
    "moe_combine_bwd",
    "moe_dispatch",
    "moe_route",
    "moe_route_bwd",
    "moe_sort",
    "quantize_fp8",
    "sparse_mla_attention",
    "sparse_mla_attention_bwd",
    "sparse_mla_decode",
    "swiglu",
    "swiglu_bwd",
    "swiglu_fp8",
    "topk_select",
]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'glm5_ops' has no attribute {name!r}")
    try:
        from glm5_ops import ops
        from glm5_ops._native import Error
    except (ImportError, OSError) as error:
        raise ImportError(
            f"glm5_ops.{name} is not available: {error}. The ops need torch 2.6 or later "
            "(pip install 'glm5-ops[torch]'); `python -m glm5_ops doctor` shows the state of this installation"
        ) from error
    globals().update({op: getattr(ops, op) for op in ops.__all__}, Error=Error)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
