"""moe_sort beside torch's stable sort and counts."""

from glm5_ops import reference
from glm5_ops.workloads.moe_dispatch import GLM5_SORT, MoeSortCase

CASES = GLM5_SORT
QUICK = (MoeSortCase(16), MoeSortCase(4096))
BASELINES = {"torch": reference.moe_sort}
