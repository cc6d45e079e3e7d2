"""indexer_logits_at_bwd beside the reference in torch, a token at a time."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_logits_at import GLM5_BWD, IndexerLogitsAtBwdCase

CASES = GLM5_BWD
QUICK = (IndexerLogitsAtBwdCase(16, 4096, 512),)
BASELINES = {"torch": reference.indexer_logits_at_bwd}
