"""What runs on several ranks, over ``torch.distributed``; it knows the surface and :mod:`glm5_ops.model`."""

from glm5_ops.distributed.expert_parallel import ExpertParallel

__all__ = ["ExpertParallel"]
