"""indexer_cache_append beside the same arithmetic in torch."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_cache_append import GLM5, AppendCase

CASES = GLM5
QUICK = (AppendCase(1, 1), AppendCase(4096, 64))
BASELINES = {"torch": reference.indexer_cache_append}
