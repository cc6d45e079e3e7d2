"""Indices out of range: every op of the indexer refuses them in one sentence, on the host and, when asked, on the
device; unasked, a GPU follows none of them (the emulator reports an access outside a tensor)."""

from collections.abc import Callable

import pytest
import torch

import glm5_ops
from glm5_ops.workloads.indexer_cache_append import AppendCase
from glm5_ops.workloads.indexer_logits import IndexerLogitsCase, IndexerLogitsPagedCase
from glm5_ops.workloads.indexer_topk import IndexerTopkCase, IndexerTopkPagedCase
from glm5_ops.workloads.topk_select import TopkSelectCase
from tests import harness
from tests.harness import over

# A window, a sequence and a table entry that are out of range, by the input that holds them; two pages, 128 positions.
WINDOWS = [[-1, 3], [4, 3], [0, 2**31 - 1], [-(2**31), -(2**31)]]
DENSE = {
    "indexer_logits": IndexerLogitsCase(4, 128),
    "indexer_topk": IndexerTopkCase(4, 128, topk=20),
    "topk_select": TopkSelectCase(4, 128, 20, windows="causal"),
}
PAGED = {
    "indexer_logits_paged": IndexerLogitsPagedCase(2, 64, 2, ragged=False),
    "indexer_topk_paged": IndexerTopkPagedCase(2, 64, 2, topk=20, physical=True, ragged=False),
}


def _wrong(case, name: str, place: tuple, value: object) -> dict:
    inputs = case.inputs()
    inputs[name][place] = torch.tensor(value, dtype=inputs[name].dtype)
    return inputs


SENTENCES = [
    *((op, _wrong(case, "windows", (2,), window), f"windows[2] must be a range within the 128 keys; got {window}")
      for op, case in (DENSE | PAGED).items() for window in WINDOWS),
    *((op, _wrong(case, "sequences", (3,), value),
       f"sequences[3] must be a row of block_table, which has 2; got {value}")
      for op, case in PAGED.items() for value in (2, -1, 2**31 - 1)),
    *((op, _wrong(case, "block_table", (1, 0), value),
       f"block_table[1, 0] must be a page of the cache, since the window of row 2 uses it; got {value}")
      for op, case in PAGED.items() for value in (4, -1, 2**31 - 1)),
    *(("indexer_cache_append", _wrong(AppendCase(4, 1), name, (1,), value), sentence)
      for name, value, sentence in (
          ("cache_slots", 64, "cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[1] is 64"),
          ("cache_slots", 2**40, f"cache_slots must be -1 or a slot of the cache, 0 .. 63; cache_slots[1] is {2**40}"),
          ("positions", -1, "positions must be rows of cos_sin, 0 .. 4095; positions[1] is -1"))),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "sentence"), SENTENCES)
def test_a_cpu_refuses_always(op, inputs, sentence):
    by_the_door = harness.message_of(getattr(glm5_ops, op), **inputs)
    assert by_the_door.startswith(f"{op}: {sentence} (csrc/core/")
    assert harness.message_of(getattr(glm5_ops, op), **inputs, check_indices=True) == f"{op}: {sentence}"


@pytest.mark.parametrize(("op", "inputs", "sentence"), SENTENCES)
@over([IndexerLogitsCase(1, 1)], harness.GPUS)
def test_a_gpu_refuses_when_asked_and_follows_none_of_them_otherwise(case, target, op, inputs, sentence):
    inputs = {n: v.to(target.device) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}
    function: Callable = getattr(glm5_ops, op)
    function(**inputs)
    assert harness.message_of(function, **inputs, check_indices=True) == f"{op}: {sentence}"
