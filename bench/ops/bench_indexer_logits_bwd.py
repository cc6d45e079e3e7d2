"""indexer_logits_bwd beside the reference in torch."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_logits import GLM5_BWD, IndexerLogitsBwdCase

CASES = GLM5_BWD
QUICK = (IndexerLogitsBwdCase(128, 512),)
BASELINES = {"torch": reference.indexer_logits_bwd}
