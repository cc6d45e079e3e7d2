"""indexer_topk_paged beside the reference in torch: all scores, then a sort."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_topk import GLM5_PAGED, IndexerTopkPagedCase

CASES = GLM5_PAGED
QUICK = (IndexerTopkPagedCase(4, 1024, topk=256),)
BASELINES = {"torch": reference.indexer_topk_paged}
