"""What every op is tried on: cases, inputs, costs, and the rule its results are judged by.

A module per op file: ``CASES`` maps each op of the file to its ``Workload``.
"""

from importlib import import_module

from glm5_ops.workloads._workload import Case, Workload

MODULES = (
    "dequantize_fp8",
    "fp8_gemm",
    "gemm",
    "grouped_gemm",
    "indexer_cache_append",
    "indexer_logits",
    "indexer_logits_at",
    "indexer_topk",
    "mla_cache_append",
    "mla_cache_gather",
    "moe_combine",
    "moe_dispatch",
    "moe_route",
    "quantize_fp8",
    "sparse_mla_attention",
    "swiglu",
    "topk_select",
)


def all_workloads() -> dict[str, Workload]:
    """Every op's workload by the op's name."""
    found: dict[str, Workload] = {}
    for module in MODULES:
        found |= import_module(f"glm5_ops.workloads.{module}").WORKLOADS
    return dict(sorted(found.items()))


__all__ = ["MODULES", "Case", "Workload", "all_workloads"]
