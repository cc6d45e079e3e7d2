"""dequantize_fp8 beside a memory copy of the same bytes, and the same arithmetic in torch."""

from glm5_ops.bench.timing import copy_of_the_same_bytes

from glm5_ops import reference
from glm5_ops.workloads.dequantize_fp8 import GLM5, DequantizeCase

CASES = (DequantizeCase(1, 128), *GLM5)
QUICK = (DequantizeCase(1, 128), DequantizeCase(1024, 6144), DequantizeCase(576, 6144, "128x128"))
BASELINES = {"copy": copy_of_the_same_bytes(reference.dequantize_fp8), "torch": reference.dequantize_fp8}
