"""topk_select beside torch.topk, and beside torch reading the scores once."""

from collections.abc import Callable

import torch
from glm5_ops.bench.timing import Prepared
from torch import Tensor

from glm5_ops.workloads.topk_select import GLM5, TopkSelectCase


def torch_topk(scores: Tensor, topk: int, **_: object) -> Callable[[], object]:
    """Of whole rows, whatever the windows; ties broken anyhow, indices in the order of scores."""
    return lambda: torch.topk(scores, min(topk, scores.shape[1]), dim=1)


def read(scores: Tensor, topk: int, **_: object) -> Callable[[], Tensor]:
    """The fastest reading that torch offers of this many bytes: the maximum of 64-bit integers."""
    words = torch.zeros(scores.numel() // 2, dtype=torch.int64, device=scores.device)
    words.copy_(scores.reshape(-1)[: 2 * words.numel()].view(torch.int64))
    return lambda: words.max()


CASES = (TopkSelectCase(1, 128, 64), *GLM5)
QUICK = (TopkSelectCase(1, 128, 64), TopkSelectCase(16, 65536, 2048, optional=False))
BASELINES = {"torch": Prepared(torch_topk), "read": Prepared(read)}
