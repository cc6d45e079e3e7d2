"""mla_cache_gather beside the same arithmetic in torch."""

from glm5_ops import reference
from glm5_ops.workloads.mla_cache_gather import GLM5

CASES = GLM5
QUICK = GLM5[:1]
BASELINES = {"torch": reference.mla_cache_gather}
