"""quantize_fp8 beside a memory copy of the same bytes, and the same arithmetic in torch."""

from glm5_ops.bench.timing import copy_of_the_same_bytes

from glm5_ops import reference
from glm5_ops.workloads.quantize_fp8 import GLM5, QuantizeCase

CASES = (QuantizeCase(1, 128), *GLM5)
QUICK = (QuantizeCase(1, 128), QuantizeCase(16, 6144), QuantizeCase(1024, 6144), QuantizeCase(576, 6144, "128x128"))
BASELINES = {"copy": copy_of_the_same_bytes(reference.quantize_fp8), "torch": reference.quantize_fp8}
