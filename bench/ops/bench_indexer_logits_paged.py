"""indexer_logits_paged beside the reference in torch, a sequence at a time."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_logits import GLM5_PAGED, IndexerLogitsPagedCase

CASES = GLM5_PAGED
QUICK = (IndexerLogitsPagedCase(4, 1024),)
BASELINES = {"torch": reference.indexer_logits_paged}
