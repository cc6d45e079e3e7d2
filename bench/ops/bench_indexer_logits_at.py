"""indexer_logits_at beside the reference in torch, a token at a time."""

from glm5_ops import reference
from glm5_ops.workloads.indexer_logits_at import GLM5, IndexerLogitsAtCase

CASES = GLM5
QUICK = (IndexerLogitsAtCase(16, 4096, 2048),)
BASELINES = {"torch": reference.indexer_logits_at}
