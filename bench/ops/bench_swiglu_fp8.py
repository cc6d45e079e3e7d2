"""swiglu_fp8 beside a copy of the same bytes, and swiglu in torch's operations with quantize_fp8 behind it."""

from glm5_ops.bench.ops.bench_swiglu import composed
from glm5_ops.bench.timing import copy_of_the_same_bytes
from torch import Tensor

import glm5_ops
from glm5_ops import reference
from glm5_ops.workloads.swiglu import GLM5_FP8, SwigluFp8Case


def two_passes(gate_up: Tensor, **_: object) -> tuple[Tensor, Tensor]:
    return glm5_ops.quantize_fp8(composed(gate_up), "1x128")


CASES = GLM5_FP8
QUICK = (SwigluFp8Case(128, 2048), SwigluFp8Case(1024, 2048))
BASELINES = {"copy": copy_of_the_same_bytes(reference.swiglu_fp8), "torch and quantize_fp8": two_passes}
