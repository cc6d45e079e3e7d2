import dataclasses
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from glm5_ops import _native, indexer_logits, indexer_logits_paged, indexer_topk, indexer_topk_paged, topk_select
from glm5_ops.workloads.indexer_topk import (
    ANY_SIZES,
    EDGES,
    EDGES_PAGED,
    IndexerTopkCase,
    IndexerTopkPagedCase,
)
from tests import harness
from tests.harness import over

CPUS = tuple(t for t in harness.TARGETS if t not in harness.GPUS)
RAGGED = tuple(IndexerTopkCase(37, 330, dtype=dtype, windows="random", topk=50) for dtype in ("e4m3", "bf16"))
# One token, whose keys are shared out among threads, and a few that share them.
LONG = (IndexerTopkCase(1, 5000, 4, 32, windows="full", topk=600), IndexerTopkCase(3, 5000, 4, 32, topk=600))
RAGGED_PAGED = tuple(IndexerTopkPagedCase(3, 250, 2, dtype=dtype, topk=64) for dtype in ("e4m3", "bf16"))


@over(EDGES)
def test_chooses_the_best_scores(case, target):
    harness.check_matches_reference("indexer_topk", case, target)


@over(EDGES_PAGED)
def test_paged_chooses_the_best_scores(case, target):
    harness.check_matches_reference("indexer_topk_paged", case, target)


@over((*ANY_SIZES, *LONG), CPUS)
def test_a_cpu_takes_any_sizes(case, target):
    harness.check_matches_reference("indexer_topk", case, target)


def _composed(inputs: dict) -> tuple[torch.Tensor, ...]:
    """topk_select of indexer_logits."""
    options = {n: inputs[n] for n in ("topk", "margins", "fingerprints")}
    operands = {n: v for n, v in inputs.items() if n not in (*options, "physical")}
    if "cache" not in inputs:
        return topk_select(indexer_logits(**operands), windows=inputs["windows"], **options)
    slots = {n: inputs[n] for n in ("block_table", "sequences")} if inputs["physical"] else {}
    return topk_select(indexer_logits_paged(**operands), windows=inputs["windows"], **slots, **options)


@over((*EDGES, *ANY_SIZES, *LONG), CPUS)
def test_gives_the_bits_of_topk_select_of_indexer_logits(case, target):
    inputs = case.inputs()
    harness.check_same_bits("fused", indexer_topk(**inputs), _composed(inputs))


@over(EDGES_PAGED, CPUS)
def test_paged_gives_the_bits_of_topk_select_of_indexer_logits(case, target):
    inputs = case.inputs()
    # without a window of its own a token has no slot: its table row may hold anything
    if case.physical:
        inputs["block_table"] = inputs["block_table"].clamp(0, inputs["cache"].shape[0] - 1)
    harness.check_same_bits("fused", indexer_topk_paged(**inputs), _composed(inputs))


@over((*RAGGED, *ANY_SIZES), harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits(case, target):
    harness.check_same_bits_as_generic("indexer_topk", case, target)


@over(RAGGED_PAGED, harness.VECTOR_CPUS)
def test_every_instruction_set_gives_the_same_bits_paged(case, target):
    harness.check_same_bits_as_generic("indexer_topk_paged", case, target)


@over(RAGGED)
def test_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats("indexer_topk", case, target)
    harness.check_thread_count_does_not_matter("indexer_topk", case, target)
    harness.check_rows_do_not_depend_on_the_batch("indexer_topk", case, target)


@over(LONG, CPUS)
def test_long_rows_have_the_same_bits_with_any_thread_count(case, target):
    harness.check_thread_count_does_not_matter("indexer_topk", case, target)


@over(RAGGED_PAGED)
def test_paged_same_bits_twice_with_any_thread_count_and_in_any_batch(case, target):
    harness.check_repeats("indexer_topk_paged", case, target)
    harness.check_thread_count_does_not_matter("indexer_topk_paged", case, target)
    harness.check_rows_do_not_depend_on_the_batch("indexer_topk_paged", case, target)


@over([IndexerTopkCase(6, 700, 32, 128, topk=200, plateau=True, windows="full")], CPUS)
def test_a_plateau_of_zeros_gives_one_set_25_times(case, target):
    inputs = case.inputs()
    scores = indexer_logits(**{n: v for n, v in inputs.items() if n not in ("topk", "margins", "fingerprints")})
    positive, chosen = (scores > 0).sum(1), indexer_topk(**inputs)
    assert bool(((scores == 0).sum(1) > 300).all()), "no plateau"
    assert bool((positive < 200).any()) and bool((chosen[1] == 0).any()), "the cut does not lie in the plateau"
    for _ in range(24):
        harness.check_same_bits("replay", indexer_topk(**inputs), chosen)


@over(RAGGED)
def test_keys_outside_a_window_do_not_leak(case, target):
    inputs = case.inputs(target.device)
    inputs["windows"] = torch.tensor([[40, 175], [9, 9], [41, 174]], dtype=torch.int32).repeat(13, 1)[: case.tokens]
    inputs["windows"] = inputs["windows"].to(target.device)
    expected = indexer_topk(**inputs)
    inputs["k"][:40] = inputs["k"][175:] = float("nan")
    if "k_scales" in inputs:
        inputs["k_scales"][:40] = inputs["k_scales"][175:] = float("nan")
    harness.check_same_bits("poisoned keys", indexer_topk(**inputs), expected)


@over([RAGGED[0]])
def test_all_keys_of_a_short_window_are_chosen(case, target):
    inputs = case.inputs(target.device)
    indices, margins, _ = indexer_topk(**(inputs | {"topk": case.keys + 5}))
    for row, margin, (begin, end) in zip(indices.tolist(), margins.tolist(), inputs["windows"].tolist(), strict=True):
        assert row == [*range(begin, end), *[-1] * (case.keys + 5 - end + begin)] and margin == float("inf")


def test_scratch_grows_neither_with_keys_nor_with_tokens():
    for bytes_of in (_native.indexer_topk_workspace_bytes, _native.indexer_topk_cuda_workspace_bytes):
        sizes = [bytes_of(tokens, keys, 32, 128, 2048, False) for tokens in (4096, 131072) for keys in (2**15, 2**20)]
        assert max(sizes) <= 1.01 * min(sizes) < 96 << 20


@over([IndexerTopkCase(37, 1000, topk=50)], [t for t in harness.TARGETS if t.device == "cuda"])
def test_is_captured_in_a_graph(case, target):
    inputs = case.inputs(target.device)
    expected = indexer_topk(**inputs)  # also loads the kernels, which a capture must not do
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = indexer_topk(**inputs)
    for _ in range(3):
        graph.replay()
        harness.check_same_bits("replay", got, expected)


MEMORY = r"""
import re, torch, glm5_ops
from glm5_ops.workloads.indexer_topk import IndexerTopkCase
torch.set_num_threads(2)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
inputs = IndexerTopkCase(2048, 16384, 1, 32, windows="full", topk=64, optional=False).inputs()
glm5_ops.indexer_topk(**{n: v[:4] if n in ("q", "weights", "windows") else v for n, v in inputs.items()})
before = peak()
FUNCTION
print(peak() - before)
"""
FUSED = "glm5_ops.indexer_topk(**inputs)"
COMPOSED = """
options = {n: inputs.pop(n) for n in ("topk", "margins", "fingerprints")}
glm5_ops.topk_select(glm5_ops.indexer_logits(**inputs), windows=inputs["windows"], **options)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read as Linux tells it")
@pytest.mark.parametrize(("function", "fits"), [(FUSED, True), (COMPOSED, False)], ids=["fused", "composed"])
def test_the_score_matrix_never_exists(function, fits):
    """It would be 128 MiB; results and scratch are a few. The composition shows that the measure sees it."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY.replace("FUNCTION", function)], capture_output=True, text=True, check=True
    )
    assert (int(done.stdout) < 24 << 10) == fits, f"{done.stdout.strip()} KiB more"


@pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: HF's indexer is no oracle"
)
def test_chooses_what_the_indexer_of_transformers_chooses():
    from transformers.models.glm_moe_dsa import modeling_glm_moe_dsa as hf
    from transformers.models.glm_moe_dsa.configuration_glm_moe_dsa import GlmMoeDsaConfig

    torch.manual_seed(0)
    tokens, topk = 192, 48
    config = GlmMoeDsaConfig(
        hidden_size=96, q_lora_rank=64, index_n_heads=32, index_head_dim=128, index_topk=topk, qk_rope_head_dim=64
    )
    indexer = hf.GlmMoeDsaIndexer(config, 0).bfloat16()
    hidden, latent = torch.randn(1, tokens, 96).bfloat16(), torch.randn(1, tokens, 64).bfloat16()
    angles = torch.randn(1, tokens, 64)
    rope = angles.cos().bfloat16(), angles.sin().bfloat16()
    causal = torch.ones(1, tokens, tokens, dtype=torch.bool).tril()
    chosen = indexer(hidden, latent, rope, causal, torch.arange(tokens)[None])[0]

    with torch.no_grad():
        q = indexer.wq_b(latent).view(1, tokens, 32, 128)
        k = indexer.k_norm(indexer.wk(hidden)).unsqueeze(2)
        turned = hf.apply_rotary_pos_emb_interleave(q[..., :64], k[..., :64], *rope, unsqueeze_dim=2)
        q, k = (torch.cat([t, x[..., 64:]], -1)[0] for t, x in zip(turned, (q, k), strict=True))
        weights = indexer.weights_proj(hidden)[0].float() * 32**-0.5 * 128**-0.5
    windows = torch.stack([torch.zeros(tokens), torch.arange(tokens) + 1], 1).int()
    indices, margins, _ = indexer_topk(q, k[:, 0], weights, windows, topk, margins=True)
    compared = 0
    for t in range(tokens):
        theirs = sorted(s for s in chosen[t].tolist() if s <= t)
        if margins[t] > 1e-6:  # else rounding decides
            assert indices[t, : len(theirs)].tolist() == theirs and not (indices[t, len(theirs) :] >= 0).any()
            compared += 1
    assert compared > 0.95 * tokens


def _misuse() -> list:
    inputs = IndexerTopkCase(4, 6, 2, 8, topk=3).inputs()
    wrong_window = inputs["windows"].clone()
    wrong_window[1, 1] = 7
    return [
        ({"topk": 0}, "topk must be from 1 to 2147483647; got 0"),
        ({"q": inputs["q"].float()}, "q must be e4m3|bf16[tokens, heads, dim]"),
        ({"k": inputs["k"].bfloat16()}, "k must be torch.float8_e4m3fn as q is"),
        ({"k_scales": None}, "k_scales must be given with e4m3 and only then; got None"),
        ({"windows": inputs["windows"].long()}, "windows must be i32[tokens, 2]"),
        ({"windows": wrong_window}, "windows[1] must be a range within the 6 keys; got [0, 7]"),
        ({"windows": wrong_window, "check_indices": True}, "windows[1] must be a range within the 6 keys; got [0, 7]"),
        ({"weights": inputs["weights"].clone().requires_grad_()}, "weights requires grad, but indexer_topk has no"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), _misuse())
def test_misuse_is_answered_with_a_sentence(wrong, sentence):
    message = harness.message_of(indexer_topk, **IndexerTopkCase(4, 6, 2, 8, topk=3).inputs() | wrong)
    assert message.startswith("indexer_topk: ") and sentence in message


def _misuse_paged() -> list:
    inputs = IndexerTopkPagedCase(2, 100, heads=2, dim=8, ragged=False).inputs()
    table = inputs["block_table"].clone()
    table[1, 1] = 6
    return [
        ({"topk": -1}, "topk must be from 1 to 2147483647; got -1"),
        ({"cache": inputs["cache"][:, 1:]}, "cache must be u8[pages, 64*(dim+4)], 768 bytes a page"),
        ({"q": inputs["q"].bfloat16()}, "bf16_cache must be bf16[pages, 64, dim]"),
        ({"sequences": inputs["sequences"] + 1}, "sequences[1] must be a row of block_table, which has 2; got 2"),
        ({"block_table": table}, "block_table[1, 1] must be a page of the cache, since the window of row 1 uses it"),
        ({"block_table": table, "check_indices": True}, "block_table[1, 1] must be a page of the cache, since the"),
        ({"windows": inputs["windows"] - 1}, "windows[0] must be a range within the 192 keys; got [-1, 99]"),
    ]


@pytest.mark.parametrize(("wrong", "sentence"), _misuse_paged())
def test_misuse_of_the_paged_form_is_answered_with_a_sentence(wrong, sentence):
    inputs = IndexerTopkPagedCase(2, 100, heads=2, dim=8, ragged=False).inputs()
    message = harness.message_of(indexer_topk_paged, **inputs | wrong)
    assert message.startswith("indexer_topk_paged: ") and sentence in message


def test_registration():
    for dtype in ("e4m3", "bf16"):
        dense = IndexerTopkCase(4, 6, 2, 8, dtype, topk=3).inputs()
        dense = {"k_scales": None} | dense
        order = ("q", "k", "weights", "windows", "topk", "k_scales", "margins", "fingerprints")
        harness.check_registration("indexer_topk", *(dense[n] for n in order))
        paged = IndexerTopkPagedCase(2, 70, heads=2, dim=8, dtype=dtype, topk=3).inputs()
        order = ("q", "weights", "cache", "block_table", "sequences", "windows", "topk", "physical")
        harness.check_registration("indexer_topk_paged", *(paged[n] for n in order))


@pytest.mark.parametrize("dtype", ["e4m3", "bf16"])
def test_compiles_and_exports(dtype):
    class Choice(torch.nn.Module):
        def forward(self, dense, paged):
            return *indexer_topk(**dense), *indexer_topk_paged(**paged)

    cases = IndexerTopkCase(5, 9, 2, 8, dtype, topk=4), IndexerTopkPagedCase(2, 70, 1, 2, 8, dtype, topk=4)
    compiled = torch.compile(Choice(), fullgraph=True, dynamic=True, backend="aot_eager")
    for seed in (0, 1):
        inputs = [dataclasses.replace(case, seed=seed).inputs() for case in cases]
        harness.check_same_bits("compiled", compiled(*inputs), Choice()(*inputs))
    exported = torch.export.export(Choice(), tuple(inputs))
    harness.check_same_bits("exported", exported.module()(*inputs), Choice()(*inputs))
