"""moe_dispatch beside a copy of the same bytes, and torch's sort and gather."""

from glm5_ops.bench.timing import copy_of_the_same_bytes

from glm5_ops import reference
from glm5_ops.workloads.moe_dispatch import GLM5, MoeDispatchCase

CASES = GLM5
QUICK = (MoeDispatchCase(1), MoeDispatchCase(512), MoeDispatchCase(512, dtype="e4m3"))
BASELINES = {"copy": copy_of_the_same_bytes(reference.moe_dispatch), "torch": reference.moe_dispatch}
