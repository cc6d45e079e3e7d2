"""The ops: contract, launch, gradient."""

from glm5_ops.ops.dequantize_fp8 import dequantize_fp8
from glm5_ops.ops.fp8_gemm import fp8_gemm, fp8_gemm_into
from glm5_ops.ops.gemm import gemm, gemm_into
from glm5_ops.ops.quantize_fp8 import quantize_fp8
from glm5_ops.ops.topk_select import topk_select

__all__ = ["dequantize_fp8", "fp8_gemm", "fp8_gemm_into", "gemm", "gemm_into", "quantize_fp8", "topk_select"]
