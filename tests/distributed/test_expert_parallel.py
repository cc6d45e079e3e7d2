"""Expert parallelism between real processes over Gloo: the bits of one rank that has all tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import glm5_ops
from glm5_ops.distributed import ExpertParallel
from glm5_ops.model.experts import Experts
from tests import harness
from tests.distributed import _worker

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch has no Gloo: no processes to spread over"
)
ROOT = Path(__file__).parents[2]
OF_TOKENS = ("out", "x", "weights", "shared")


def launch(ranks: int, folder: Path, task: str) -> list:
    """What every rank saved; None where it saved nothing."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "tests.distributed._worker", str(folder), task]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = [folder / f"{rank}.pt" for rank in range(ranks)]
    return [torch.load(path) if path.exists() else None for path in saved]


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_gives_the_bits_of_one(ranks, tmp_path):
    shares = launch(ranks, tmp_path, "layer")
    for precision in ("bf16", "fp8"):
        expected = _worker.results(precision, None, 0, 1)
        assert all(tensor.any() for tensor in expected.values())
        for name, whole in expected.items():
            got = torch.cat([share[precision][name] for share in shares])
            harness.check_same_bits(f"{precision} {name}, {ranks} ranks", [got], [whole])


def test_a_rank_that_is_gone_ends_in_a_sentence(tmp_path):
    (sentence, nothing) = launch(2, tmp_path, "gone")
    assert nothing is None
    assert sentence.startswith("expert_parallel: the exchange of counts did not come to its end on rank 0 of 2: ")
    assert "took longer than 20 s" in sentence


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_process_alone_is_one_rank(precision):
    alone = _worker.results(precision, ExpertParallel(), 0, 1)
    harness.check_same_bits("alone", alone.values(), _worker.results(precision, None, 0, 1).values())


class OneOf:
    """One of several ranks, whose counts are looked at only."""

    rank, ranks = 0, 4


def test_a_token_is_sent_once_to_a_rank():
    ids = torch.tensor([[0, 1, 7], [-1, 8, 3], [-1, -1, -1], [6, 7, 6]], dtype=torch.int32)
    route = ExpertParallel(transport=OneOf()).route(glm5_ops, ids, 8)
    assert route.to.tolist() == [0, 1, 3, 3] and route.tokens.tolist() == [0, 1, 0, 3]
    assert route.sent_ids.tolist() == [[0, 1, -1], [-1, -1, 1], [-1, -1, 1], [0, 1, 0]]
    assert route.send_rows == [1, 1, 0, 2] and route.send_answers == [2, 1, 0, 4]
    assert route.slots.tolist() == [[0, 1, 3], [-1, -1, 2], [-1, -1, -1], [4, 5, 6]]


def test_experts_that_cannot_be_shared_equally_are_refused():
    with pytest.raises(ValueError, match="Experts: experts must be a multiple of the 4 ranks; got 6"):
        Experts(6, 32, 16, parallel=ExpertParallel(transport=OneOf()))
