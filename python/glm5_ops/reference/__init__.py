"""The equations, in plain PyTorch: the surface of :mod:`glm5_ops`, slow and readable.

References compute in f64 when their floating-point inputs are f64, else in f32, on any device. They check nothing.
"""

from glm5_ops.reference.dequantize_fp8 import dequantize_fp8
from glm5_ops.reference.fp8_gemm import fp8_gemm, fp8_gemm_into
from glm5_ops.reference.gemm import gemm, gemm_into
from glm5_ops.reference.grouped_gemm import (
    grouped_gemm,
    grouped_gemm_into,
    grouped_gemm_masked,
    grouped_gemm_wgrad,
    grouped_gemm_wgrad_into,
)
from glm5_ops.reference.indexer_cache_append import indexer_cache_append
from glm5_ops.reference.indexer_logits import indexer_logits, indexer_logits_bwd, indexer_logits_paged
from glm5_ops.reference.indexer_logits_at import indexer_logits_at, indexer_logits_at_bwd
from glm5_ops.reference.indexer_topk import indexer_topk, indexer_topk_paged
from glm5_ops.reference.mla_cache_append import mla_cache_append
from glm5_ops.reference.mla_cache_gather import mla_cache_gather
from glm5_ops.reference.moe_combine import moe_combine, moe_combine_bwd
from glm5_ops.reference.moe_dispatch import moe_dispatch, moe_sort
from glm5_ops.reference.moe_route import moe_route, moe_route_bwd
from glm5_ops.reference.quantize_fp8 import quantize_fp8
from glm5_ops.reference.sparse_mla_attention import sparse_mla_attention, sparse_mla_attention_bwd, sparse_mla_decode
from glm5_ops.reference.swiglu import swiglu, swiglu_bwd, swiglu_fp8
from glm5_ops.reference.topk_select import topk_select

__all__ = [
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
