"""What a rank does in the tests of expert parallelism; started by torchrun with a folder and a task."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from glm5_ops.distributed import ExpertParallel
from glm5_ops.model.experts import Experts

EXPERTS, HIDDEN, INTERMEDIATE, TOPK = 8, 256, 128, 3
TOKENS = {1: (33,), 2: (20, 13), 4: (9, 11, 0, 13)}  # of each rank; the same tokens in all


def whole_inputs() -> tuple:
    """x, ids, weights, shared and the gradient of the output, of all ranks' tokens."""
    generator = torch.Generator().manual_seed(2)
    tokens = sum(TOKENS[1])
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    ids = torch.rand(tokens, EXPERTS, generator=generator).topk(TOPK).indices
    ids[::5, 1] = -1  # dropped
    ids[3::7] = -1
    ids[8:12] = torch.tensor([0, 1, 2])  # tokens that only want one rank
    weights = torch.rand(tokens, TOPK, generator=generator)
    shared, d_out = (torch.randn(tokens, HIDDEN, generator=generator).bfloat16() for _ in range(2))
    return x, ids, weights, shared, d_out


def whole_weights() -> tuple:
    generator = torch.Generator().manual_seed(3)
    gate_up = torch.randn(EXPERTS, 2 * INTERMEDIATE, HIDDEN, generator=generator) / HIDDEN**0.5
    return gate_up, torch.randn(EXPERTS, HIDDEN, INTERMEDIATE, generator=generator) / INTERMEDIATE**0.5


def results(precision: str, parallel: ExpertParallel | None, rank: int, ranks: int) -> dict:
    """The output and the gradients of a rank's tokens and experts."""
    layer = Experts(EXPERTS, HIDDEN, INTERMEDIATE, precision=precision, parallel=parallel)
    share = slice(EXPERTS // ranks * rank, EXPERTS // ranks * (rank + 1))
    with torch.no_grad():
        for parameter, whole in zip(layer.parameters(), whole_weights(), strict=True):
            parameter.copy_(whole[share])
    first = sum(TOKENS[ranks][:rank])
    own = slice(first, first + TOKENS[ranks][rank])
    x, ids, weights, shared, d_out = (t[own] for t in whole_inputs())
    x, weights, shared = (t.clone().requires_grad_() for t in (x, weights, shared))
    out = layer(x, ids, weights, lambda: shared * 1)
    out.backward(d_out)
    of_tokens = {"out": out.detach(), "x": x.grad, "weights": weights.grad, "shared": shared.grad}
    return of_tokens | {name: p.grad for name, p in layer.named_parameters()}


def main(folder: str, task: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    to = Path(folder) / f"{rank}.pt"
    parallel = ExpertParallel(timeout=20)
    if task == "layer":
        torch.save({precision: results(precision, parallel, rank, ranks) for precision in ("bf16", "fp8")}, to)
        dist.barrier()
    elif rank == 1:
        return  # gone before the layer is called
    else:
        try:
            results("bf16", parallel, rank, ranks)
        except RuntimeError as error:
            torch.save(str(error), to)


if __name__ == "__main__":
    main(*sys.argv[1:])
